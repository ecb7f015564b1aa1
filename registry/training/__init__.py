"""Training a model anew: the script, candidates, metrics, promotion."""
