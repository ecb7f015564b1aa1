"""Tests of serving/status."""
