"""The extent driver: a container's writable layer in an append-only log, without root and without a mount
(docs/extent-driver.md).

- A layer in memory: `table.py` (its inodes), `image_tree.py` (the image below), `resolving.py` (where a path leads),
  `applying.py` (what records do to it), `tree.py` (its operations), `xattrs.py` (which values the kernel takes).
- Its logs: `log.py`, `log_rows.py` (which there are, and which need which), `writable_layers.py` (opening, forking,
  rolling back), `compaction.py` (writing one anew).
- What Python calls: `operations.py` (as `os`), `open_files.py` (as `open`), `directories.py` (listings).
- What was changed: `delta.py` (as entries, and as `diff`), `own_contents.py` (where contents are read from).
- From the other driver: `recording.py` (a log from entries).
"""
