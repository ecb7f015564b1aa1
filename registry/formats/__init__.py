"""Formats of model files: what a file is, which versions it was fitted with, and the estimator in it."""
