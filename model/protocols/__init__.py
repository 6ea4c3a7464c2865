"""Built-in protocols as tables of rows, and the files of a user's own."""
