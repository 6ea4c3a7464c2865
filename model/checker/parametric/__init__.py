"""Proves properties for every number of workers, over the set of worker states that are occupied."""
