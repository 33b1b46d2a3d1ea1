"""Whether a store is as it was written, and making it so again."""
