"""Tests of serving/http."""
