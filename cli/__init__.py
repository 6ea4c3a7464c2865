"""Runs the command line: reads flags, calls the rooms that do the work, prints, draws and writes."""
