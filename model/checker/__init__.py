"""Searches the state space of a network, and shows the counterexamples that are found."""
