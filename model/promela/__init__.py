"""A network as Promela, for Spin."""
