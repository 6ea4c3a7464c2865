"""Judges ranks by their collectives alone: who differs, who waits, and for which ranks."""
