"""The hot path: from a request body to predictions and explanations."""
