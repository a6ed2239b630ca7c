"""Benchmarks. Each prints a line of JSON as its last line."""
