"""Layers in and out of the store (docs/load-and-save.md).

- In: `loading.py` (which layers are missing, in what order they come), `imports.py` (an import and its commit),
  `blob_streams.py` (decompression, hashing), `damaged.py` (layers that are known to be damaged), `thawing.py` (contents
  back from the cold tier: docs/cold.md).
- Out: `saving.py`, `targets.py` (the archive or directory), `recipe.py` (a layer's tar again), `blobs.py` (the tar as
  the blob that is saved or sent).
- `known_blobs.py`: what blobs of registries and archives layers are known as.
- `index_files.py`: indexes of layers, also compressed. `ordered.py`: work of threads whose results come in order.
"""
