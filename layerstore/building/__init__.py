"""Builds images from Dockerfiles: the parser, the build context, steps, their cache (docs/building.md).

The package is not called `build`, as `layerstore.build` is the function.

- A build: `builder.py` (stages side by side), `planning.py` (which are needed), `workshop.py` (what they share).
- The Dockerfile: `dockerfile.py` (reading it), `scope.py` (its variables), `patterns.py` (of COPY and .dockerignore).
- A stage: `stage.py` (keys, what each instruction does), `state.py` and `history.py` (config and history so far).
- COPY and ADD: `copy_and_add.py`, `context.py` and `hostfiles.py` (what is read of the host), `add_archives.py` (what
  ADD unpacks), `built_tree.py` (what they put into).
- RUN: `running.py` (the container, its output, mount points), `mounts.py` (`--mount`).
- What lasts and what does not: `steps.py` (the cache), `leftovers.py` (what a build has only while it runs).
"""
