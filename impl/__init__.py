"""Runs the protocol on torch.distributed: envelope, preflight, wire, roles, generator.

No other folder needs torch.
"""
