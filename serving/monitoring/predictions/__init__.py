"""The log of predictions: what was asked and answered, by which version; kept for a while, then forgotten."""
