"""Kernel mounts: the shared EROFS images and the containers' overlays."""
