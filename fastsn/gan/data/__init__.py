"""Real images: the paper's data sets, and a user's own."""
