"""A container of a store."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial

from layerstore.api import handles
from layerstore.containers.containers import check_count
from layerstore.errors import Conflict, LayerstoreError, NotFound, ProgramNotFound, Unsupported
from layerstore.extents.operations import Operations
from layerstore.naming import fstat
from layerstore.types import encode_path

_OF_PROGRAM = ("args", "entrypoint", "log_bytes")
"""What `prepare` keeps that is of the program alone, and of no container that lives without one."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from subprocess import CompletedProcess
    from types import TracebackType
    from typing import Any, BinaryIO, Literal, Unpack, overload

    from layerstore.api.engine import Engine
    from layerstore.api.image import Image
    from layerstore.api.store import Driver
    from layerstore.containers.bundle import Volume
    from layerstore.containers.confinement import Confinement, Loosened
    from layerstore.containers.containers import ContainerRow
    from layerstore.containers.copying import Files
    from layerstore.containers.forks import Forks
    from layerstore.containers.groups import Group
    from layerstore.containers.processes import Process, Stream
    from layerstore.containers.program_records import Ending, Record
    from layerstore.containers.runtime import Runtime
    from layerstore.containers.writable import WritableContainers
    from layerstore.extents.writable_layers import Layer
    from layerstore.results import Change, Printed, Running, Snapshot, Stats
    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Clone, Entry


class Container(Operations, handles.Handle):
    """A writable layer on an image. As a context manager it is mounted inside the block and unmounted after it.

    The functions of the `os` module (see `Operations`) are for the extent driver, mounting and programs for the overlay
    driver.

    A child that `os.fork` makes, as `multiprocessing` may, is another process to the extent driver: files that are open
    for writing raise `OSError` with ESTALE in it, what they have gathered is handed over by the parent alone, and it
    cannot write (`Conflict`) until the parent has closed the store.
    """

    def __init__(self, engine: Engine, row: ContainerRow) -> None:
        self._engine = engine
        self.row = row

    def __repr__(self) -> str:
        return f"<Container {self.id[:12]} of {self.row.image_name}>"

    def _handle(self) -> tuple[Callable[..., Container], tuple[handles.Opened, str]]:
        return handles.container, (self._engine.opened, self.id)

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.row.id

    @property
    def name(self) -> str | None:
        return self.row.name

    @property
    def image(self) -> Image:
        return self._engine.image(self.row.image_id)

    @property
    def driver(self) -> str:
        """ "overlay" or "extent"."""
        return self.row.driver

    @property
    def root(self) -> Path:
        """Where its view is while it is mounted."""
        from pathlib import Path

        return Path(self._engine.containers.root(self.id))

    @property
    def state(self) -> str:
        """ "created", "mounted", "running" or "paused"; `program` says how what ran last has ended."""
        return self._engine.containers.states([self.row])[0]

    @property
    def program(self) -> Record | None:
        """What is known of the program that was started last, and how it ended; None where none was. Commands are no
        such programs."""
        from layerstore.containers import program_records

        return program_records.read(self._engine.layout.container(self.id))

    def set_name(self, name: str) -> None:
        """Give it another name. Raises `InvalidInput` where it is none, `Conflict` where another container has it,
        `NotFound`."""
        self.row = self._engine.containers.rename(self.row, name)

    def mount(self) -> _Mounted:
        """Mount it; the result is the path of its view, and as a context manager unmounts it at the end.

        Raises `Unsupported` where this user or kernel cannot mount, `OSError`.
        """
        self._engine.mount([self.row])
        return _Mounted(self)

    def umount(self, *, force: bool = False) -> None:
        """Unmount it; nothing happens when it is not mounted. Raises `Conflict` while it is in use, without `force`."""
        self._engine.containers.unmount([self.row], lazy=force)

    def remove(self, *, force: bool = False) -> None:
        """Remove it and what it wrote. Raises `Conflict` while it runs or is in use, without `force`."""
        self._engine.remove([self.row], force=force)

    # The extent driver

    def _layer(self) -> Layer:
        return self._writable.layer(self.row)

    @property
    def _writable(self) -> WritableContainers:
        if self.row.driver != "extent":
            raise Unsupported(
                f"container {self.id[:12]} is of the overlay driver; mount it and work on the files below its root, "
                f"or `layerstore move {self.id[:12]} --driver extent` first (`Container.move`)"
            )
        return self._engine.writable

    if TYPE_CHECKING:

        @overload
        def fork(self, count: None = None, name: str | None = None) -> Container: ...

        @overload
        def fork(self, count: int) -> list[Container]: ...

    def fork(self, count: int | None = None, name: str | None = None) -> Container | list[Container]:
        """Make a container that goes on from what this one is now, or `count` of them, alike, as a list: all or none.

        With the extent driver it takes the same time whatever is in it, and copies nothing. The moment is between two
        operations on this container, of whatever thread or process: of another process, what it has flushed counts.
        Where this process does not write to it, it reads in its log where the last operation ends: 4 ms for 10,000
        changed files.

        With the overlay driver, of one that is at rest (not mounted, and read by nobody) nothing is copied: both go on
        from what is frozen, which takes the same time whatever was changed (docs/forks.md). One that is mounted is
        cloned, but for what was frozen before: on a file system with reflink (XFS, btrfs, a pool) contents are shared
        and it costs the time of making its files again, about 20 µs for each; without, it costs their bytes. What runs
        in it stands still meanwhile, so that all of the fork is of one moment,
        and then goes on. That does not hold for what other processes of the host write to its view, nor for programs
        that crun runs without a control group: there a file that is being written is in the fork as it was at one
        moment where contents are shared; where they are copied, each write of that while may be in it or not; and of
        two files that are written one after the other, the fork may have the second write and not the first. What
        programs hold in memory is not in a fork.

        Raises `Conflict` when `name` is taken, `InvalidInput` when it is no name, `NotFound` when this one was removed,
        `OSError`.
        """
        check_count(count, name)
        made = [Container(self._engine, row) for row in self._states.fork(self.row, count or 1, name)]
        return made[0] if count is None else made

    def snapshot(self, name: str) -> None:
        """Keep what it is now under a name, to roll back to. Costs as `fork`, and sees a container in use as that does.

        Raises `Conflict` when there is a snapshot of that name, `InvalidInput` when it is no name, `OSError`.
        """
        self._states.snapshot(self.row, name)

    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, oldest first."""
        return self._states.snapshots(self.row)

    def rollback(self, name: str) -> None:
        """Put it back to a snapshot, which stays. It takes no longer the more has changed.

        Files of the extent driver that are open raise `OSError` with ESTALE then, and what it was until now is given
        back by the next `sync`, by closing the store, or by `collect_garbage`. With the overlay driver it is given back
        by `collect_garbage`, or with the container, and the next `mount` takes the snapshot again first, as long as
        `snapshot` took.

        Raises `NotFound` when there is no such snapshot, `Conflict` while it is mounted, runs, or another process
        writes to it, `OSError`.
        """
        self._states.rollback(self.row, name)

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot, and give back what only it needed. Raises `NotFound` when there is none, `OSError`."""
        self._states.remove_snapshot(self.row, name)

    @property
    def _states(self) -> WritableContainers | Forks:
        return self._engine.writable if self.row.driver == "extent" else self._engine.forks

    def move(self, driver: Driver) -> None:
        """Change its driver; nothing is done where it has that one already.

        It has the same id, name, command, files and snapshots (names, times and contents) then: all that a layer of an
        image can say of a file, so every time is that of modification. Contents that are the image's are not copied;
        others are, once, and made durable, so it takes time for what the container and its snapshots changed. To the
        overlay driver only root can move one. A `volatile` container may be moved; the extent driver has no use for
        that, and it counts again when the container is moved back. What it is to be started with (`prepare`), and what
        is kept of programs that ran in it, is gone with a move to the extent driver.

        All or nothing: it is one or the other whenever this process is killed, and what it was, or was to be, on the
        other side is given back by `collect_garbage`. Other `Container` objects of it are of no use then: ask
        `Store.container` again.

        Raises:
            Conflict: it is mounted or runs, or another process writes to it; files of it are open; it was used
                meanwhile.
            Unsupported: not by this user; or it has what the other driver cannot hold (the character device 0:0).
            InvalidInput: there is no such driver.
            NotFound: it was removed.
            CorruptError, OSError.
        """
        self.row = self._engine.moves.move(self.row, driver)

    def diff(self) -> list[Change]:
        """What it changed, sorted by path.

        Raises `NotFound` when it was removed, `LimitExceeded`, `CorruptError`, `OSError`.
        """
        if self.row.driver == "extent":
            from layerstore.extents import delta

            return delta.changes(self._layer().moment())
        from layerstore.containers import changes

        index = self.image.index()
        with self._uppers() as fds:
            found = changes.changes(fds, index)
        self._engine.containers.check(self.row)  # else it was being removed, and this may be a part of it
        return found

    # What it holds

    def commit(
        self, name: str | None = None, *, author: str = "", message: str = "", changes: Sequence[str] = ()
    ) -> Image:
        """Make an image of its image and what it changed, as one more layer; of nothing changed, a step without one.

        Args:
            name: `NAME[:TAG]` of the new image; one that another image has moves here.
            author, message: for the image's history.
            changes: instructions of a Dockerfile that change the config, one a string ('CMD ["app"]'): CMD, ENTRYPOINT,
                ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR.

        What did not change is not read. A file that did is in the layer whole, so its whole content is read, for the
        layer's diff_id is the SHA-256 of all its bytes; it is stored again only where the store has it not, and not
        copied where the file system can clone it. The layer's tar depends on the two trees alone: equal changes, made
        in whichever order and driver, have the same diff_id, and with SOURCE_DATE_EPOCH set the same image id. Sockets
        are left out.

        It may be in use meanwhile, and sees that as `fork` does: with the overlay driver, each file is of one moment.
        Durable on return. A rollback, snapshot or removal of it waits for the commit meanwhile; a removal by force does
        not, and the commit fails then. Raises `InvalidInput` for a change, a name of an image, or a file's name that a
        layer cannot have, `NotFound` when it was removed, `LimitExceeded`, `CorruptError`, `OSError`; nothing is
        visible then.
        """
        from layerstore.containers import commits

        engine = self._engine
        tar, held = self._layer_tar()
        return engine.image(
            commits.commit(
                engine.store,
                self.image.config,
                tar,
                held,
                partial(engine.containers.check, self.row),
                name=name,
                author=author,
                message=message,
                command=self.row.command,
                changes=changes,
            )
        )

    def entries(self, path: str | bytes = "/") -> Iterator[Entry]:
        """What is at and below a path of its view, each directory before what is in it, names ordered as bytes.

        It needs no mount and no root. Symbolic links on the way to the last name are followed, inside the container,
        and one at the end that "/" or "/." comes after; the path `Entry.path` is spelled without them. Where a content
        is read from (`Entry.source`) can be used until the iterator is closed. It is of one moment as a fork is
        (`fork`). A rollback, snapshot or removal waits for the iterator's end, for some seconds, and raises `Conflict`
        then.

        Raises `FileNotFoundError` and the like, `NotFound` when it was removed, `CorruptError`, `OSError`.
        """
        from layerstore.trees.whole import whole

        index = self.image.index()
        with self._changed() as changed:
            yield from whole(index, self._engine.contents, changed, encode_path(path))

    def export(self, path: str | bytes = "/") -> Iterator[Piece]:
        """Its whole view, or what is at and below a path, as the pieces of a tar.

        Names in it begin with the last name of the path; those of the whole view at the root. Sockets are left out.
        Raises as `entries`.
        """
        from layerstore.containers.copying import renamed
        from layerstore.trees.tarring import tar_pieces

        return tar_pieces(renamed(self._present(path)))

    def _present(self, path: str | bytes) -> Iterator[Entry]:
        """As `entries`; of a container in use each file is as it is when its entry is asked for."""
        if self.row.driver == "extent":
            return self.entries(path)
        from layerstore.containers.upper import present

        return present(self.entries(path))

    def copy_in(
        self, source: str | os.PathLike[str], path: str | os.PathLike[str], *, keep_owner: bool = False
    ) -> None:
        """Copy a file or tree of the host to `path`, as `cp -a`: what is there is merged with directories and else
        replaced.

        Times, permissions, extended attributes, links of both kinds, devices, holes of files come along; owners with
        `keep_owner` only, else root's. One of the overlay driver is mounted for it if it is not. Raises `OSError`; what
        was copied until then stays.
        """
        from layerstore.containers import copying

        with self._files() as files:
            copying.copy_in(files, os.fspath(source), os.fspath(path), keep_owner)

    def copy_out(self, path: str | bytes, target: str | os.PathLike[str], *, keep_owner: bool = False) -> None:
        """Copy a file or tree to `target` of the host, as `copy_in` the other way; owners with `keep_owner`, which
        takes root and trust in who made the files.

        Without it no program of the container gets rights on the host, where all belongs to this user: files lose
        set-user-ID, set-group-ID and sticky bits (as with cp(1), not docker cp), `security.*` (capabilities) and
        `trusted.*` attributes are left out, and devices are, too: `Unsupported` is raised after all else was copied.
        Blocks of zeros become holes. Extended attributes that this user, or the host's file system, may not set are
        left out. No link of the host is followed below `target`. It needs no mount. Raises as `entries`; what was
        copied until then stays.
        """
        from layerstore.containers import copying

        copying.copy_out(self._present(path), os.fspath(target), keep_owner)

    def unpack(self, archive: BinaryIO, path: str | os.PathLike[str]) -> None:
        """Take the entries of a tar into the directory `path`, as `tar -xp` by root in a chroot to it.

        The tar is a stream, compressed with gzip, zstd, bzip2, xz or not. What is there is merged with directories and
        else replaced. Names that lead above the directory begin at it. One of the overlay driver is mounted for it if
        it is not. Raises `InvalidInput` where it is no tar, `LimitExceeded`, `OSError`; what was unpacked until then
        stays.
        """
        from layerstore.containers import unpacking

        with self._files() as files:
            unpacking.unpack(files, archive, os.fspath(path), self._engine.limits)

    @contextlib.contextmanager
    def _files(self) -> Iterator[Files]:
        if self.row.driver == "extent":
            yield self
            return
        from layerstore.containers.mounted import MountedFiles

        with self._mounted() as root, MountedFiles(f"/proc/self/fd/{root}") as files:
            yield files

    @contextlib.contextmanager
    def _mounted(self, *, keep: bool = False) -> Iterator[int]:
        """See `Containers.mounted_for`."""
        engine = self._engine
        with engine.containers.mounted_for(self.row, engine.diff_ids, keep=keep) as root:
            yield root

    @contextlib.contextmanager
    def _uppers(self, *, lasting: bool = False) -> Iterator[list[int]]:
        """The upper directory and those that it stands on, which are neither rolled back nor removed meanwhile; see
        `snapshots.source`. Raises `NotFound` or `Conflict` where they were, by force, or moved.

        What needs another lock of the store (an index, contents) is opened before."""
        from layerstore.containers import snapshots
        from layerstore.store import frozen

        layout = self._engine.layout
        with (
            self._engine.containers.told_of_removal(self.row),
            snapshots.source(layout, self.id, lasting=lasting) as directory,
            frozen.opened(layout, directory) as fds,
        ):
            yield fds

    @contextlib.contextmanager
    def _changed(self) -> Iterator[Iterator[Entry]]:
        """For an iterator, whose caller may do anything meanwhile."""
        if self.row.driver == "extent":
            from layerstore.extents import delta

            yield delta.entries(self._layer().moment())
            return
        from layerstore.containers import upper

        index, contents = self.image.index(), self._engine.contents
        with self._uppers(lasting=True) as fds:
            yield upper.entries(fds, index, contents)
        self._engine.containers.check(self.row)  # else it was being removed, and these may be a part of it

    def _layer_tar(self) -> tuple[Callable[[Clone], Iterator[Piece]], contextlib.AbstractContextManager[object]]:
        """What writes the tar of its changes, and what is to be held meanwhile."""
        if self.row.driver == "extent":
            from layerstore.extents import delta
            from layerstore.trees.tarring import tar_pieces

            layer = self._layer()
            return lambda clone: tar_pieces(delta.entries(layer.moment()), clone), contextlib.nullcontext()
        from layerstore.containers import upper

        index, contents, stack = self.image.index(), self._engine.contents, contextlib.ExitStack()

        def tar(clone: Clone) -> Iterator[Piece]:
            return upper.tar_pieces(stack.enter_context(self._uppers()), index, contents, clone)

        return tar, stack

    def run(
        self,
        args: Sequence[str] | None = None,
        *,
        entrypoint: Sequence[str] | None = None,
        env: Sequence[str] | Mapping[str, str] = (),
        workdir: str | None = None,
        user: str | None = None,
        tty: bool = False,
        network: Literal["host", "none", "private"] = "none",
        volumes: Sequence[Volume] = (),
        hostname: str | None = None,
        stdin: int | BinaryIO | None = None,
        stdout: int | BinaryIO | None = None,
        stderr: int | BinaryIO | None = None,
        **loosened: Unpack[Loosened],
    ) -> int:
        """Run a program in the container and wait for it; the container is mounted for it if it is not.

        Args:
            args: the arguments, in place of the image's command.
            entrypoint: in place of the image's entrypoint and command.
            env: `K=V` strings or a mapping, added to the image's environment.
            network: "none"; "private", one of its own with a way out by pasta(1), and nothing of the host's; or "host"
                for the host's, which shows its abstract sockets, too.
            stdin, stdout, stderr: descriptors or files with one; None is the caller's own. The program has pipes (with
                `tty` a terminal) of its own: no program gets at these files. What it prints is delivered when this
                returns. What it did not read of a file is read by who reads that next; of a pipe or socket that it did
                not read to the end, up to 128 KiB are taken, of a terminal a line.
            security_opt: "seccomp=unconfined", "seccomp=FILE" (a profile as docker's, JSON), "no-new-privileges".
            cap_add, cap_drop: capabilities, as "NET_ADMIN", or "ALL".
            devices: devices of the host that it may use, as "HOST[:CONTAINER[:rwm]]".
            privileged: all capabilities, system calls and devices, /sys to be written, nothing of /proc masked: root in
                it is root of the host.
            pids_limit: how many processes and threads it may have (2,048), or -1. The runtime that waits for it is one.
            memory: the most memory of all its programs together, bytes or as "512m". Who takes more is killed.
            memory_swap: memory and swap together; twice the memory where only that is given, or -1.
            cpus: the most CPU time, as that of 1.5 CPUs. cpuset_cpus: those that it runs on, as "0-2,5". cpu_shares:
                its weight when others want CPU time as well (1,024).
            ulimits: limits of each process, as "nofile=1024:2048": docker's names, soft and hard, -1 for none.
            shm_size: of /dev/shm, bytes or as "64m" (64 MiB).
            read_only: nothing of its root can be written, but what is mounted there.
            tmpfs: file systems in memory, as "PATH" or "PATH:size=64m,mode=1777,exec"; noexec, nosuid and nodev unless
                the options say otherwise.
            init: a small process of ours is the first one: it starts the program, sends it the signals that it gets
                itself, and waits for what the program leaves.
            ports: ports of the host that lead to those of a private network, as "[ADDRESS:]HOST:CONTAINER[/udp]".
            cgroups: "disabled" does without a control group, and so without limits. Device files cannot be opened then
                but for those in /dev.

        Returns:
            The exit status, 128 + N when signal N ended it.

        Raises:
            InvalidInput: the image says no command, or names a user that it does not have; an argument is none.
            ProgramNotFound, ProgramNotExecutable: the program is not in the container, or no program for that user.
            Conflict: a program runs in it already.
            Unsupported: no OCI runtime, no right to mount, or nothing to confine it by.
            OSError: also where the output cannot be written (a full disk), after the program has ended, which gets
                SIGPIPE then. That its reader has gone is no failure.
        """
        from layerstore.containers import groups, program_records
        from layerstore.containers.confinement import confined

        confinement = confined(**loosened)
        runtime = self._engine.containers.runtime()
        with self._engine.containers.starting(self.id), self._mounted_to_start():
            spec = self._spec(args, entrypoint, env, workdir, user, tty, network, volumes, hostname, confinement)
            fds = [_descriptor(file, own) for own, file in enumerate((stdin, stdout, stderr))]
            with (
                self._launched(spec, confinement, runtime, network) as started,
                groups.oom_events(self.id) as events,
                program_records.kept(started.bundle, events) as keep,
            ):
                bundle, group = started.bundle, started.group
                return runtime.run(
                    bundle, self.id, group, stdin=fds[0], stdout=fds[1], stderr=fds[2], tty=tty, ended=keep
                )

    def start(
        self,
        args: Sequence[str] | None = None,
        *,
        entrypoint: Sequence[str] | None = None,
        env: Sequence[str] | Mapping[str, str] = (),
        workdir: str | None = None,
        user: str | None = None,
        network: Literal["host", "none", "private"] = "none",
        volumes: Sequence[Volume] = (),
        hostname: str | None = None,
        auto_remove: bool = False,
        log_bytes: int | str | None = None,
        **loosened: Unpack[Loosened],
    ) -> int:
        """Start a program in the container and leave it running; returns the id of its first process.

        Arguments as for `run`; standard input is empty. What it prints is kept (`logs`), and how it ends (`wait`), by a
        small process of the host, its monitor, which goes on when this one has ended. Where that is killed, the program
        gets SIGPIPE as it prints the next time, and nobody sees its end. The container stays mounted; `stop` and `kill`
        end the program, `remove` the container. With `auto_remove` the monitor removes the container at the program's
        end. `log_bytes` is the most of its output that is kept, bytes or as "10m" (32 MiB, and not less than 32 KiB);
        the oldest half goes where there is more. Raises as `run`.
        """
        from layerstore.containers import groups, program_logs, program_records
        from layerstore.containers.confinement import confined

        confinement = confined(**loosened)
        limit = {} if log_bytes is None else {"log_bytes": program_logs.file_bytes(log_bytes)}
        then = self._removal() if auto_remove else ()
        with self._engine.containers.starting(self.id) as lock, self._mounted_to_start(keep=True) as root:
            spec = self._spec(args, entrypoint, env, workdir, user, False, network, volumes, hostname, confinement)

            def watched(runtime: Runtime, started: _Started) -> int:
                bundle, group = started.bundle, started.group
                after = then or started.ending
                with groups.oom_events(self.id) as events, program_records.begun(bundle) as record:
                    return runtime.start_watched(
                        bundle, self.id, group, record=record, lock=lock, events=events, then=after, **limit
                    )

            return self._left_running(spec, confinement, network, root, watched)

    def prepare(self, args: Sequence[str] | None = None, **options: Any) -> None:
        """Keep the arguments that `start_prepared` is to give to `start`; nothing is started. They are on the disk on
        return, unless the container is `volatile`. `Store.create(prepared=)` makes a container that has them.

        A command that makes the container live (`exec`) does so with them, too, but for the program. Forks that are
        made later have them as well, but for `ports`: one of the host leads to one container. Raises `InvalidInput`,
        `Unsupported` with the extent driver, `OSError`.
        """
        from layerstore.containers import program_records

        if self.row.driver != "overlay":
            raise Unsupported(f"container {self.id[:12]} is of the {self.row.driver} driver, which runs no programs")
        directory, kept = self._engine.layout.container(self.id), program_records.options_of(args, options)
        program_records.write_options([directory], kept, durable=not self.row.volatile)

    def start_prepared(self) -> int:
        """`start` with what `prepare` was given last, else the image's own command. Raises as `start`, and
        `LayerstoreError` where a power cut took what was kept."""
        kept = self._prepared()
        return self.start(kept.pop("args", None), **kept)

    def _prepared(self) -> dict[str, Any]:
        """What `prepare` was given last, by the names of the arguments of `start`."""
        from layerstore.containers import program_records
        from layerstore.containers.bundle import Volume

        self._engine.containers.check(self.row)
        kept = program_records.read_options(self._engine.layout.container(self.id))
        return {**kept, "volumes": [Volume(**volume) for volume in kept.get("volumes", ())]}

    def _keep_alive_as_prepared(self) -> None:
        self.keep_alive(**{name: value for name, value in self._prepared().items() if name not in _OF_PROGRAM})

    def _removal(self) -> list[str]:
        """A command that removes it by force, from this process's modules."""
        import sys

        arguments = ["--root", os.path.abspath(self._engine.layout.root), "rm", "--force", self.id]
        path = [os.path.abspath(directory) for directory in sys.path]
        script = f"import sys; sys.path[:] = {path!r}; from layerstore import cli; cli.main()"
        # The monitor gives it no environment; without what this process was linked with its modules may not load.
        linked = [f"{name}={os.environ[name]}" for name in ("LD_PRELOAD", "LD_LIBRARY_PATH") if name in os.environ]
        return [*(["/usr/bin/env", *linked] if linked else []), sys.executable, "-I", "-c", script, *arguments]

    def keep_alive(
        self,
        *,
        env: Sequence[str] | Mapping[str, str] = (),
        workdir: str | None = None,
        user: str | None = None,
        network: Literal["host", "none", "private"] = "none",
        volumes: Sequence[Volume] = (),
        hostname: str | None = None,
        **loosened: Unpack[Loosened],
    ) -> None:
        """Have it live without a program of its own, for commands (`exec`, `popen`), until `stop`.

        They do that by themselves where nothing runs in it, with what `prepare` was given, else the defaults; call this
        for other options. Arguments as for `run`; commands have this environment, directory and user unless they are
        given others. Its first process is one of 16 KiB, which waits for what commands leave, and ends with `stop`.
        As long as nothing else runs in it, `umount`, `remove`, `rollback`, `run` and `start` end it, too. Raises as
        `start`.
        """
        from layerstore.containers import keeping
        from layerstore.containers.confinement import confined

        confinement = confined(**loosened)
        with self._engine.containers.starting(self.id), self._mounted_to_start(keep=True) as root:
            keeper = [keeping.KEEPER]
            spec = self._spec(keeper, [], env, workdir, user, False, network, volumes, hostname, confinement)

            def kept(runtime: Runtime, started: _Started) -> int:
                return runtime.start_detached(started.bundle, self.id, started.group)

            self._left_running(keeping.shown(spec), confinement, network, root, kept, is_program=False)

    def _left_running(
        self,
        spec: dict[str, Any],
        confinement: Confinement,
        network: str,
        root: int,
        start: Callable[[Runtime, _Started], int],
        *,
        is_program: bool = True,
    ) -> int:
        """`root`: a descriptor of the root of its view."""
        runtime = self._engine.containers.runtime()
        with self._launched(spec, confinement, runtime, network, is_program=is_program) as started:
            pid = start(runtime, started)
            # A removal by force may have come before the group, and an unmount by force before the runtime.
            self._engine.containers.check(self.row)
            with contextlib.suppress(FileNotFoundError):  # it has ended
                self._check_is_view(f"/proc/{pid}/root/", root)
            started.stays = True
            return pid

    @contextlib.contextmanager
    def _mounted_to_start(self, *, keep: bool = False) -> Iterator[int]:
        """As `_mounted`; `Conflict` where something failed since it was unmounted by force meanwhile."""
        with self._mounted(keep=keep) as root:
            try:
                yield root
            except LayerstoreError:
                self._check_is_view(self.root, root)
                raise

    def _check_is_view(self, path: str | Path, root: int) -> None:
        """Raise `Conflict` unless a path is in the view with that root, `FileNotFoundError`."""
        if os.stat(path).st_dev != fstat(root).st_dev:
            raise Conflict(f"container {self.id[:12]} was unmounted by force while it started; try again")

    def popen(
        self,
        args: Sequence[str],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Sequence[str] | Mapping[str, str] = (),
        workdir: str | None = None,
        user: str | None = None,
        tty: bool = False,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> Process:
        """Begin a command in the container, beside whatever runs in it, in the manner of `subprocess.Popen`.

        Where nothing runs in it, it is made to live first, as by `keep_alive` with the limits, volumes and all else
        that `prepare` was given, and goes on living. The command is confined as the container is. Any number may run at
        once, of any process and thread.

        Args:
            args: the program and its arguments, a list; neither the image's entrypoint nor a shell comes before it.
            stdin, stdout, stderr: `subprocess.PIPE`, `DEVNULL`, a descriptor, or a file with one; None is the caller's
                own; `STDOUT` for stderr. What is no pipe is copied by a thread.
            env: `K=V` strings or a mapping, added to the container's.
            workdir, user: in place of the container's.
            tty: give it a terminal; stdin must be one, which is connected to it.
            text, encoding, errors: make text of the pipes; UTF-8 unless an encoding is given.

        Raises:
            InvalidInput: args is a string, or empty; no such user; an argument is none.
            ProgramNotFound, ProgramNotExecutable: the program is not in the container, or no program for that user.
            Conflict: the container is paused, or others end it again and again.
            NotFound, Unsupported, OSError: as `start`.
        """
        from layerstore.containers import bundle, groups, keeping, launching, processes, stillness

        processes.check(args, encoding, errors)
        engine = self._engine
        runtime = engine.containers.runtime()
        directory = engine.layout.container(self.id)
        lock = engine.containers.joined(self.id, self._keep_alive_as_prepared)
        part = None
        try:
            with engine.containers.told_of_removal(self.row):
                # Before the spec: one of another life of the container would not go with a group of this one.
                part = groups.part(self.id) if runtime.starts_in_group else None
                spec = keeping.read_spec(directory)
            if stillness.is_paused(engine.layout, engine.containers, self.id):
                raise Conflict(f"container {self.id[:12]} is paused; `layerstore unpause {self.id[:12]}` first")
            if part is None and runtime.starts_in_group and launching.GROUPED in spec.get("annotations", ()):
                raise Conflict(f"container {self.id[:12]} was stopped meanwhile; try again")
            process = bundle.command_process(
                spec,
                self.image.config.document,
                args,
                env=[f"{key}={value}" for key, value in env.items()] if hasattr(env, "items") else env,
                workdir=workdir,
                user=user,
                tty=tty,
            )
            self._check_program({**spec, "process": process})
        except BaseException:
            if part is not None:
                part.close(ended=True)
            lock.__exit__()
            raise
        return processes.begin(
            args,
            process,
            runtime=runtime,
            container=self.id,
            directory=directory,
            part=part,
            release=lock.__exit__,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
            encoding=encoding,
            errors=errors,
        )

    def _check_program(self, spec: dict[str, Any]) -> None:
        """`program.check`; where the container goes on in a view that was unmounted by force, the runtime is to say."""
        from layerstore.containers import program

        try:
            program.check(spec)
        except ProgramNotFound:
            if self._engine.containers.mounted([self.row])[0]:
                raise

    def exec(
        self,
        args: Sequence[str],
        *,
        timeout: float | None = None,
        input: bytes | str | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        capture_output: bool = False,
        check: bool = False,
        env: Sequence[str] | Mapping[str, str] = (),
        workdir: str | None = None,
        user: str | None = None,
        tty: bool = False,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
    ) -> CompletedProcess[Any]:
        """Run a command in the container and wait for it, in the manner of `subprocess.run`.

        Arguments as for `popen`, and:
            timeout: seconds; after these the command is killed with all that it has started.
            input: for its standard input; without it, and without `stdin`, that is empty where outputs are captured.
            capture_output: return its outputs; `stdout` and `stderr` are not given then.
            check: raise `subprocess.CalledProcessError` unless the exit status is 0.

        Returns:
            `subprocess.CompletedProcess`: `args`, `returncode` (128 + N when signal N ended it), `stdout`, `stderr`.

        Raises `subprocess.TimeoutExpired`, with what was captured until then, and as `popen`.
        """
        from layerstore.containers import processes

        stdin, stdout, stderr = processes.asked_streams(stdin, stdout, stderr, input, capture_output)
        begun = self.popen(
            args,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            workdir=workdir,
            user=user,
            tty=tty,
            text=text,
            encoding=encoding,
            errors=errors,
        )
        return processes.finished(begun, input, timeout, check)

    def stop(self, timeout: float = 10) -> None:
        """End what runs in it: its first process gets the image's StopSignal (SIGTERM), and is killed after `timeout`
        seconds. What else runs in it is killed with that. Nothing happens where nothing runs. Raises `OSError`."""
        import signal

        from layerstore.containers import keeping
        from layerstore.containers.bundle import stop_signal

        containers = self._engine.containers
        is_kept = keeping.is_kept(self._engine.layout.container(self.id))
        number = signal.SIGTERM if is_kept else stop_signal(self.image.config.document)
        containers.stop(self.id, number, timeout)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the program that was started last has ended; its exit status, 128 + N when signal N ended it.

        The status of one that has ended already is kept. Raises `subprocess.TimeoutExpired` after `timeout` seconds,
        `NotFound` where no program was started, or the container is removed, `LayerstoreError` where nobody saw its
        end: its monitor, or who ran it, was killed, or the machine was started anew.
        """
        with self.ending() as ending:
            record = ending.wait(timeout)
        if record is None:
            from subprocess import TimeoutExpired

            assert timeout is not None
            raise TimeoutExpired(json.loads(self.row.command or "[]"), timeout)
        return record.known_status()

    def ending(self) -> Ending:
        """The end of the program that was started last, to be waited for beside other things: a context manager with
        descriptors (`fds`) to be polled. Raises `NotFound` as `wait`, `OSError`."""
        from layerstore.containers.program_records import Ending

        self._engine.containers.check(self.row)
        self.row = self._engine.containers.row(self.id)  # with the command that was started
        return Ending(self._engine.layout.container(self.id))

    def logs(self, *, follow: bool = False, since: float | None = None, tail: int | None = None) -> Iterator[Printed]:
        """What programs that were started with `start` printed, in the order in which it came.

        About the last 16 to 32 MiB are kept, or as `start` was told, of all programs until the container is removed.

        Args:
            follow: go on with what is printed from now on, until the program ends.
            since: only what came at that time, seconds since 1970, or later.
            tail: of what there is, only that many lines.

        Raises `NotFound` where the container was removed, `OSError`.
        """
        from layerstore.containers import program_logs

        self._engine.containers.check(self.row)
        return program_logs.printed(self._engine.layout.container(self.id), follow=follow, since=since, tail=tail)

    def kill(self, number: int = 9) -> None:
        """Send a signal (SIGKILL) to its first process; one that is paused goes on. Raises `NotFound` when nothing runs
        in it."""
        from layerstore.containers import stillness

        self._engine.containers.runtime().kill(self.id, number)
        stillness.unpause(self._engine.layout, self._engine.containers, self.id)

    def pause(self) -> None:
        """Stop every program in it until `unpause`, `stop` or `kill`; no command begins meanwhile.

        Raises `NotFound` where nothing runs in it, `Conflict` where it is paused already, or a program cannot be
        stopped as it waits for a disk, `Unsupported` without a control group, `OSError`.
        """
        from layerstore.containers import stillness

        stillness.pause(self._engine.layout, self._engine.containers, self.id)

    def unpause(self) -> None:
        """Have its programs go on. Raises `Conflict` where it is not paused, `OSError`."""
        from layerstore.containers import stillness

        if not stillness.unpause(self._engine.layout, self._engine.containers, self.id):
            raise Conflict(f"container {self.id[:12]} is not paused")

    def top(self) -> list[Running]:
        """The processes in it, also those of commands. Raises `NotFound` where nothing runs in it."""
        from layerstore.containers import observing

        return observing.running(self._first())

    def stats(self) -> Stats:
        """What it takes at this moment. Raises `NotFound` where nothing runs in it."""
        from layerstore.containers import observing

        return observing.stats(self.id, self._first())

    def _first(self) -> int:
        state = self._engine.containers.runtime().state(self.id)
        if state["status"] == "stopped":
            raise NotFound(f"the program of container {self.id[:12]} has ended")
        return int(state["pid"])

    def inspect(self) -> dict[str, Any]:
        """What is known of the container. `Program` is what is known of the one that was started last (`program`), None
        where none was."""
        from datetime import UTC, datetime

        def moment(seconds: float) -> str:
            return datetime.fromtimestamp(seconds, UTC).isoformat()

        state, program = self.state, self.program
        return {
            "Id": self.id,
            "Name": self.name,
            "Image": self.row.image_id,
            "ImageName": self.row.image_name,
            "Driver": self.row.driver,
            "Created": moment(self.row.created_seconds),
            "Command": json.loads(self.row.command) if self.row.command else None,
            "State": state,
            "Program": program
            and {
                "StartedAt": moment(program.started),
                "FinishedAt": None if program.finished is None else moment(program.finished),
                "ExitCode": program.status,
                "OOMKilled": program.oom_killed,
                "LostBytes": program.lost_bytes,
            },
            "Root": str(self.root) if state != "created" else None,
            "Upper": self._engine.containers.upper(self.id) if self.row.driver == "overlay" else None,
        }

    def _spec(
        self,
        args: Sequence[str] | None,
        entrypoint: Sequence[str] | None,
        env: Sequence[str] | Mapping[str, str],
        workdir: str | None,
        user: str | None,
        tty: bool,
        network: Literal["host", "none", "private"],
        volumes: Sequence[Volume],
        hostname: str | None,
        confinement: Confinement,
    ) -> dict[str, Any]:
        from layerstore.containers import program
        from layerstore.containers.bundle import Volume, runtime_spec

        if network == "private":
            from layerstore.containers import networks

            files = networks.write_files(self._engine.layout.container(self.id), hostname or self.id[:12])
            volumes = [*(Volume(source, path) for path, source in files.items()), *volumes]
        spec = runtime_spec(
            self.image.config.document,
            self._engine.containers.root(self.id),
            args=args,
            entrypoint=entrypoint,
            env=[f"{key}={value}" for key, value in env.items()] if hasattr(env, "items") else env,
            workdir=workdir,
            user=user,
            tty=tty,
            network=network,
            volumes=volumes,
            hostname=hostname if network == "host" else hostname or self.id[:12],
            confinement=confinement,
        )
        program.check(spec)
        return spec

    @contextlib.contextmanager
    def _launched(
        self, spec: dict[str, Any], confinement: Confinement, runtime: Runtime, network: str, *, is_program: bool = True
    ) -> Iterator[_Started]:
        """What a runtime is to be given to start what a spec says."""
        from layerstore.containers import keeping, launching

        if confinement.has_init and is_program:
            spec = keeping.under_init(spec)
        launching.complete(spec, confinement, runtime, self.id, self._engine.layout.run)
        with contextlib.ExitStack() as stack:
            own = stack.enter_context(launching.networked(spec, network, confinement.ports, self.id))
            # Before the group, which keeps a removal by force waiting.
            bundle = self._engine.containers.write_bundle(self.id, spec, is_program=is_program)
            group = stack.enter_context(launching.grouped(confinement, runtime, self.id))
            started = _Started(bundle, group, () if own is None else own.ending)
            yield started
            for each in (group, own):
                if each is not None:
                    each.stays = started.stays


class _Started:
    """A bundle, and the control group that the runtime starts it in; whether it `stays` when its block has ended.
    `ending` is a command for after the program's end."""

    def __init__(self, bundle: str, group: Group | None, ending: Sequence[str]) -> None:
        self.bundle = bundle
        self.group = group
        self.ending = ending
        self.stays = False


class _Mounted:
    """What `Container.mount` gives: a path already; inside a with block, one that is unmounted at its end."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def __fspath__(self) -> str:
        return str(self._container.root)

    def __str__(self) -> str:
        return str(self._container.root)

    def __enter__(self) -> Path:
        return self._container.root

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.umount()


def _descriptor(file: int | BinaryIO | None, own: int) -> int:
    if file is None:
        return own
    return file if isinstance(file, int) else file.fileno()
