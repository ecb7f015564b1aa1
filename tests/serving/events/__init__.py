"""Tests of the logs of events and of the hub."""
