"""Whether a store is as it was written, and making it so again (docs/checking.md).

- A check: `checker.py` (its order), `findings.py` (what it found), `catalog.py` (what the database says).
- What is checked: `database.py`; `contents.py`, `hashing.py` and `cold.py` (the digest log, packs, objects, cold
  packs); `layers.py`; `images.py`; `derived.py`; `containers.py` (directories and logs).
- A repair: `repairing.py` (what becomes of each damage), `salvage.py` (contents of packs without slots),
  `quarantine.py` (where damaged bytes go).
- The database made again: `pages.py` (reading its pages), `reconcile.py` (what its rows should be), `rebuilding.py`.
"""
