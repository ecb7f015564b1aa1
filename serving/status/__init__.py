"""The state of the service, as JSON and for Prometheus."""
