"""Starts a thread when it is imported, as some libraries do."""

from tests.estimators import start_thread

THREAD = start_thread()
