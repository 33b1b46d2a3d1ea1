"""The cold tier: contents that no image in use needs, compressed with the help of each other (docs/cold.md).

- `freezing.py` freezes images, `encoding.py` writes a cold pack, `estimating.py` says what freezing would save,
  `tiering.py` has the policy.
"""
