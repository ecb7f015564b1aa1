"""Records of entities and outcomes of predictions."""
