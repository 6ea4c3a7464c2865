"""Holds the record of a run: its format, what writes it and what reads it. No torch."""
