"""Benchmarks: `pytest benchmarks/`; see README.md beside this file."""
