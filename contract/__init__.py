"""Holds the contract as documents, and the audit that says whether to ship.

Each line stands with its evidence.
"""
