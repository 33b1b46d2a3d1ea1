"""Chains: what is derived of a stack of layers, and its limit (docs/chains.md).

- `indexes.py` has merged indexes, `chains.py` tree images, `packs.py` the bringing together of packs, `derived.py` the
  limit and eviction.
"""
