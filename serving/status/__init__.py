"""How the service is doing, as JSON and for Prometheus."""
