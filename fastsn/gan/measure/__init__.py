"""What is measured: samples by an extractor's features, discriminators from the inside."""
