"""A run's folder, checkpoints, tables, processes and signals."""
