"""Carries one chunk on its way: schema, rules, preflight, wire format, digests, acknowledgement."""
