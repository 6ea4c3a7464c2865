"""Engines that search the state space of a network, and the counterexamples that they find."""
