"""Writes one self-contained HTML page to step through a counterexample, a recorded run, or a model by hand."""
