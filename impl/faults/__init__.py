"""Breaks runs on purpose: injections, process faults, a simulator, and probes of every check."""
