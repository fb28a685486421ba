"""What outlives a forward: state dicts of other layouts, classes of copies and pickles, ranks."""
