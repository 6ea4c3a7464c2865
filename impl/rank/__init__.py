"""Runs one rank: roles, monitor, transport, drain, and what they need of the process."""
