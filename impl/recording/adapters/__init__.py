"""Records engines' own queues by channels, where their version is one that was tried."""
