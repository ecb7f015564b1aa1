"""Tests of serving/shared."""
