"""Measurements of what Goldpath promises. `make bench` runs all of them and writes docs/benchmarks.md."""
