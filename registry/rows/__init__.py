"""What a model takes: its features, their schema, and rows decoded from JSON."""
