"""Defines the built-in protocols as tables of rows, and reads the files of a user's own."""
