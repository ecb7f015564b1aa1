"""Starts services, databases and clients for tests and benchmarks."""
