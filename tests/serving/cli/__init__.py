"""Tests of serving/cli."""
