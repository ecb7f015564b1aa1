"""Logs, alerts and traces."""
