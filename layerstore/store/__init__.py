"""What is on disk: layout, database, locks, durable writes, contents (docs/store.md).

- `opened.py` has the three of an open store together: layout, database and contents.
- The directory: `layout.py` (every path, the version), `own_names.py` (which names are the store's), `pool.py`
  (docs/pool.md).
- The database: `db.py` (schema, transactions), `sums.py` (sums over rows), `wal_index.py` (the file that SQLite maps,
  on a full disk).
- Contents: `contents.py` (finding, reading, verifying), `cold_packs.py` (cold packs), `records.py` (what is packed),
  `pieces.py` (by the piece), `zstd.py`.
- Uppers that many containers stand on: `frozen.py` (docs/forks.md).
- Durable files: `durable.py`, `clearing.py` (clearing away what was begun), `spool.py` (what is on its way here),
  `sealed.py` (documents that say their own digest), `reflink.py` (files that share content), `removal.py` (directories
  in which something may be mounted).
- `locks.py` has every lock, and their order (docs/locks.md).
- When: `boot.py` (whether the machine was started since), `last_use.py` (of an image), `recent.py` (what is kept at
  hand).
"""
