"""Views: what a chain of layers shows, read from its merged index without mounting it (docs/reading.md).

- `view.py` has lookups, listings and walks, `globbing.py` patterns, `image_files.py` opened files, `image_paths.py`
  paths as pathlib's.
- Between images: `comparison.py`. Between layers: `provenance.py` (which brought what, and what ended it).
"""
