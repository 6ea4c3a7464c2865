"""Gathers what a hung job still shows, on one node, into one archive that `genlock replay` judges.

Everything is bounded in time, and nothing is done to the job but to look at it. The standard library alone, so that
it starts at once on every node. Left out: what follows from what is found (`conformance`).
"""
