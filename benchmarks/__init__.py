"""Benchmarks of fastsn against torch: ``make bench``, and ``make demo``."""
