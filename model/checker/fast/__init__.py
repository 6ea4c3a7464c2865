"""Searches fast: states packed into words, by numba or NumPy, equal to the reference state for state."""
