"""Tests of registry/formats/."""
