"""Builds images from Dockerfiles: the parser, the build context, steps, their cache.

The package is not called `build`, as `layerstore.build` is the function.
"""
