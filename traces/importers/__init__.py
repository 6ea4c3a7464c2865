"""Recordings of other tools, and of programs without a protocol, read as collectives. Nothing in them is executed."""
