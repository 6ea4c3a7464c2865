"""Starts ranks: launcher, the program of a rank, ranks forked from a warm process."""
