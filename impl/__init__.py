"""impl."""
