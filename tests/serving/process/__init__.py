"""Tests of serving/process."""
