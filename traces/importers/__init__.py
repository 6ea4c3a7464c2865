"""Reads recordings of other tools, and of programs without a protocol, as collectives.

Nothing in them is executed.
"""
