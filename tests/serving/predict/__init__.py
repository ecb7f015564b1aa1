"""Tests of serving/predict."""
