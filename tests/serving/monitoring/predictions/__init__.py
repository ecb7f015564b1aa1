"""Tests of serving/monitoring."""
