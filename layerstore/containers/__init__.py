"""Containers: making, mounting, running and removing them, and what they changed (docs/containers.md).

- `containers.py` has them in all: rows, directories, mounts, processes.
- Forks and snapshots: `forks.py`, `snapshots.py` (directories), `stillness.py` (what runs stops meanwhile);
  `writable.py` (of the extent driver: docs/extent-driver.md).
- What one changed (docs/commits.md): `upper.py` (the upper directory as entries and tar), `changes.py` (as `diff` tells
  it), `commits.py`, `copying.py` and `unpacking.py` (between host and container), `mounted.py` (the files of a mounted
  one).
- To the other driver: `moving.py`, `upper_writer.py` (an upper directory from entries).
- A bundle for the runtime: `bundle.py`, `tmpfs.py`, `users.py` and `rootfs.py` (looked up in the image), `program.py`
  (whether the program is there: exit statuses 126 and 127).
- A program: `runtime.py` (crun and runc), `standard_streams.py` (what it reads and prints), `launching.py` (what is
  added at its start), `program_records.py` (how it ended), `program_logs.py` (what one that was left running printed),
  `observing.py` (what runs, and what it takes).
- Commands in one that lives: `processes.py` (as Python's `subprocess`), `keeping.py` (what keeps one alive).
- What confines it: `confinement.py` (and docker's options), `resources.py` (how much it may have), `groups.py` (control
  groups), `quotas.py` (disk), `seccomp.py`, `networks.py` (a network of its own).
"""
