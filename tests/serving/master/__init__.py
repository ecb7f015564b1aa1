"""Tests of serving/master."""
