"""Benchmarks of fastsn against torch: ``make bench``, and ``python -m benchmarks.demo``."""
