"""Trees as entries, in the order of a layer: what a container changed, or all that it shows (docs/commits.md).

- `entries.py` has what is at a path, `whole.py` the whole tree, `tarring.py` its tar, `sources.py` where contents come
  from, `paths.py` paths in a tree, `whiteouts.py` the names of overlayfs.
"""
