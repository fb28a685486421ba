"""Networks, what normalizes them, and their losses."""
