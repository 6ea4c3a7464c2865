"""Defines what may happen: the protocol's tables and everything that is derived from them. No torch, no I/O."""
