"""Writes a network as Promela, for Spin."""
