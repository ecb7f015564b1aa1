"""Tests of serving/entities."""
