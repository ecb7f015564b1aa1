"""The service: models over HTTP, with jobs, events and everything around them."""
