"""Layers and chains: import, recipe, merged index and tree image."""
