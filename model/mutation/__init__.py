"""Judges mutants of a protocol, known and made by machine, and what each check of it is worth."""
