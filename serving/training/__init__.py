"""Retraining: a job that makes a new version, verifies it against the live one, and makes it live."""
