"""Benchmarks: `make bench-*`. They measure and write tables into docs/benchmarks/; nothing in them passes or fails by time."""
