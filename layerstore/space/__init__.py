"""What the store takes, and what of it is garbage: collection, usage, places of contents, what is saved by sharing."""
