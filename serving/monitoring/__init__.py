"""How well the models are doing."""
