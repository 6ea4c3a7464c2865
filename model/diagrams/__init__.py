"""State diagrams and sequence charts, as text and graphs. Writing them into files is not here."""
