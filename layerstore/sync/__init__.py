"""Transfer by difference between two stores (docs/format/sync.md)."""
