"""Tests of serving.memory."""
