"""Caches bytes under keys for a while, in this process and in Redis; knows no models and no HTTP."""
