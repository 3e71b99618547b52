"""Improvement of an order by moves on its critical path."""
