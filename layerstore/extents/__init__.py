"""The extent driver: a container's writable layer in an append-only log, without root and without a mount
(docs/extent-driver.md).

- A layer in memory: `table.py` (its inodes), `image.py` (the image below), `paths.py` (where a path leads),
  `records.py` (what records do to it), `tree.py` (its operations), `xattrs.py` (which values the kernel takes).
- Its logs: `log.py`, `layers.py` (opening, forking, rolling back), `compaction.py` (writing one anew).
- What Python calls: `operations.py` (as `os`), `files.py` (as `open`), `entries.py` (listings).
- What was changed: `delta.py` (as entries, and as `diff`), `sources.py` (where contents are read from).
- From the other driver: `recording.py` (a log from entries).
"""
