"""The gunicorn master: configuration, workers, reloads, memory."""
