"""Defines the semantics of tables: roles as transition systems, their network over collectives, faults, properties."""
