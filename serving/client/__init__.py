"""The client of a running service, for Python; imports nothing of the service itself."""
