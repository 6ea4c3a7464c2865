"""Replays ranks that follow a protocol against its tables, and finds who left them first."""
