"""Sees every c10d operation of a program, and records it."""
