"""The quality of the models' predictions."""
