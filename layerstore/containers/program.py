"""Whether the program that a container is to run is there: OCI runtimes do not agree on how to say that it is not."""

from __future__ import annotations

import os
import posixpath
import stat

from layerstore.containers.rootfs import Rootfs
from layerstore.errors import LayerstoreError, ProgramNotExecutable, ProgramNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def check(spec: Mapping[str, Any]) -> None:
    """Raise `ProgramNotFound` or `ProgramNotExecutable`, worded as docker's, when a runtime could not start `spec`.

    `spec` is a config.json as `bundle.runtime_spec` makes it. The program is looked for as execvp(3) does: from the
    working directory when it has a slash, else in the directories of the process's PATH. What one of the container's
    mounts may bring is left to the runtime to find. Raises `OSError` when the root cannot be opened.
    """
    process = spec["process"]
    program, directory = process["args"][0], process["cwd"]
    if "/" in program:
        candidates = [posixpath.join(directory, program)]
    else:
        search_path = next((pair[5:] for pair in process["env"] if pair.startswith("PATH=")), "")
        candidates = [posixpath.join(directory, place, program) for place in search_path.split(":") if place]
    with Rootfs(spec["root"]["path"]) as rootfs:
        failure: LayerstoreError | None = None
        for candidate in candidates:
            failure = _failure(rootfs, program, candidate, process["user"])
            if failure is None:
                return
        places = {list(rootfs.steps(mount["destination"]))[-1] for mount in spec["mounts"]}
        if any(not places.isdisjoint(rootfs.steps(candidate)) for candidate in candidates):
            return
    if failure is None or "/" not in program:
        raise ProgramNotFound(f'exec: "{program}": executable file not found in $PATH')
    raise failure


def _failure(rootfs: Rootfs, program: str, candidate: str, user: Mapping[str, Any]) -> LayerstoreError | None:
    """Why the file `candidate` cannot be executed, None when it can, as far as its own mode tells."""
    try:
        status = rootfs.status(candidate)
        if stat.S_ISDIR(status.st_mode):
            return ProgramNotExecutable(f'exec: "{program}": is a directory')
        if stat.S_ISREG(status.st_mode) and (_may_execute(status, user) or rootfs.has_acl(candidate)):
            return None
    except OSError as error:
        return ProgramNotFound(f'exec: "{program}": stat {candidate}: {os.strerror(error.errno or 0).lower()}')
    return ProgramNotExecutable(f'exec: "{program}": permission denied')


def _may_execute(status: os.stat_result, user: Mapping[str, Any]) -> bool:
    if user["uid"] == 0:
        return bool(status.st_mode & 0o111)
    if user["uid"] == status.st_uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user["gid"] or status.st_gid in user["additionalGids"]:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
