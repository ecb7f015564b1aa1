"""The input of a model: its features, their schema, and rows decoded from JSON."""
