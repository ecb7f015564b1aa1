"""Tests of the stores of records and outcomes."""
