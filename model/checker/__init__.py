"""model/checker."""
