"""Images as others write them, checked as they are read.

`manifests.py` has manifests, `configs.py` configs, `archives.py` docker archives and OCI layouts, `layouts.py` what
these say of their images, `instructions.py` what a Dockerfile's instructions make of a config, `words.py` their words
and variables.
"""
