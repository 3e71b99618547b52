"""Benchmarks that a user may run: needs neither torch nor ray."""
