"""Records that are fetched from elsewhere."""
