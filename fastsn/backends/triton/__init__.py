"""The Triton backend: one set of launches for a whole group; Triton is imported at first use."""
