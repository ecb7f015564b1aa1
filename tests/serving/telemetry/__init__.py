"""Tests of serving/telemetry."""
