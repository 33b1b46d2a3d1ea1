"""Chains: the merged index of a stack of layers, its tree image, the packs of a mount; a limit on what is derived."""
