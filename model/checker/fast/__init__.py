"""The fast search: states packed into words, searched by numba or NumPy, equal to the reference state for state."""
