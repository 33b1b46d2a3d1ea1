"""Transfer by difference between two stores (docs/sync.md).

- `channel.py` has the messages (docs/format/sync.md), `destinations.py` where a sync goes: a directory, or ssh.
- The side that sends: `sending.py`, `known.py` (what it knows of the other one). The side that receives:
  `receiving.py`, `arrived.py` (contents of what it got and has). Both: `tables.py` (tables, recipes, chunks).
"""
