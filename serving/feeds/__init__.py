"""Records that are fetched from elsewhere, again and again."""
