"""Tests of the stores of jobs."""
