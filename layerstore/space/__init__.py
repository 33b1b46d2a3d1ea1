"""What the store takes, and what of it is garbage (docs/space.md).

- `usage.py` says what images and the rest take, `places.py` where contents are, hot and cold, `dedup.py` what sharing
  saves, `garbage.py` collects.
"""
