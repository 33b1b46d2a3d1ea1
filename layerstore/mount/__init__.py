"""Kernel mounts (docs/containers.md): `shared.py` knows which there are, shares the EROFS mounts of chains and packs,
mounts the containers' overlays on them, and takes them away.
"""
