"""Layers in and out of the store: loading, saving, imports, recipes, blobs, streams; back from the cold tier."""
