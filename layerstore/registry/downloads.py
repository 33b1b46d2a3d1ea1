"""Blobs on their way here: several at once, each to a file that is read while it grows, going on where it was cut off.

Nothing is verified here: whoever reads a blob compares its digest. So what an earlier pull has fetched of it, and left
behind when it failed, is as good as what comes now.
"""

from __future__ import annotations

import contextlib
import os
import threading

from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from layerstore.errors import DigestMismatch, RegistryError
from layerstore.layers.blob_streams import INPUT_BYTES
from layerstore.naming import about, fstat, starting
from layerstore.registry.pace import PACE_BYTES
from layerstore.registry.transport import END_SECONDS, Transient, shown, translated
from layerstore.store.pieces import write_at
from layerstore.store.spool import Spool
from layerstore.types import digest_hex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from layerstore.oci.manifests import Descriptor
    from layerstore.registry.client import Repository
    from layerstore.registry.transport import Response

PARALLEL = 3
"""Downloads at once, as docker has it."""
_AHEAD = 64
"""Blobs that are fetched before they are read, at most: the file of each is open."""


class Download:
    """One blob. `fetch` is for one thread, `pieces` for another, at the same time or after it.

    Its file is opened, and locked, by `fetch`, and closed once `pieces` has given all of it: then `was_read` is called.
    """

    def __init__(
        self, repository: Repository, descriptor: Descriptor, directory: str, was_read: Callable[[], object]
    ) -> None:
        self.descriptor = descriptor
        self._repository = repository
        self._directory = directory
        self._was_read = was_read
        self._spool: Spool | None = None
        self._have = 0
        self.kept_bytes = 0
        """What an earlier pull has left of it."""
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._response: Response | None = None
        self._stopped = threading.Event()

    def fetch(self, progress: Callable[[int], None] | None = None) -> None:
        """Bring it here, `progress` being told the bytes so far. What fails is raised by `pieces`, not here."""
        try:
            self._open()
            failures = 0
            while self._have < self.descriptor.size_bytes and not self._stopped.is_set():
                before = self._have
                try:
                    self._fetch_rest(progress)
                except Transient as error:
                    # Whoever gives a little each time is not asked for ever.
                    failures = 1 if self._have - before >= PACE_BYTES else failures + 1
                    self._repository.client.patience.wait(failures, error, self._stopped)
        except BaseException as error:
            self._error = error
        with self._changed:
            self._changed.notify()

    def _open(self) -> None:
        self._spool = Spool(self._directory, digest_hex(self.descriptor.digest))
        have = fstat(self._spool.fd).st_size
        if have > self.descriptor.size_bytes:
            with about(self._spool.path):
                os.ftruncate(self._spool.fd, 0)
            have = 0
        self.kept_bytes = have
        with self._changed:
            self._have = have
            self._changed.notify()

    def _fetch_rest(self, progress: Callable[[int], None] | None) -> None:
        assert self._spool is not None
        size = self.descriptor.size_bytes
        with self._repository.open_blob(self.descriptor.digest, self._have) as (response, start):
            self._response = response
            self._check_length(response, start)
            at = start
            while at < size and not self._stopped.is_set():
                try:
                    # What is there: of a piece that does not become whole, nothing would be kept.
                    piece = response.read1(INPUT_BYTES)
                except HTTPError as error:
                    raise translated(error, response.url or "") from error
                if not piece:
                    raise Transient(f"{shown(response.url or '')} ended after {at} of {size} bytes")
                if at + len(piece) > size:
                    raise DigestMismatch(f"the blob {self.descriptor.digest} goes on after the {size} bytes promised")
                # A server that does not know ranges begins again with what is here already.
                fresh = memoryview(piece)[max(0, self._have - at) :]
                at += len(piece)
                with about(self._spool.path):
                    write_at(self._spool.fd, fresh, at - len(fresh))
                if at > self._have:
                    with self._changed:
                        self._have = at
                        self._changed.notify()
                if progress is not None:
                    progress(self._have)

    def _check_length(self, response: Response, start: int) -> None:
        length = response.headers.get("Content-Length")
        expected = self.descriptor.size_bytes - start
        if length is not None and length != str(expected):
            raise DigestMismatch(
                f"the registry sends {length} bytes of the blob {self.descriptor.digest} where its manifest promises "
                f"{expected}"
            )

    def pieces(self) -> Iterator[bytes]:
        """Its bytes as they come. Raises what fetching them raised."""
        at = 0
        while at < self.descriptor.size_bytes:
            with self._changed:
                while (have := self._have) <= at and self._error is None and not self._stopped.is_set():
                    self._changed.wait()
            if have <= at:
                raise self._error or RegistryError("the download was given up")
            assert self._spool is not None
            with about(self._spool.path):
                piece = os.pread(self._spool.fd, min(have - at, INPUT_BYTES), at)
            at += len(piece)
            yield piece
        # `fetch` writes nothing more.
        self.close()
        self._was_read()

    def stop(self) -> None:
        """Have `fetch` end soon."""
        self._stopped.set()
        with self._changed:
            self._changed.notify()
        response = self._response
        if isinstance(response, HTTPResponse):
            with contextlib.suppress(ValueError, RuntimeError, OSError):  # it has ended by itself
                response.shutdown()

    def remove(self) -> None:
        """Have what was fetched not be there for the next pull; one that has it open reads on."""
        if self._spool is not None:
            self._spool.remove()

    def close(self) -> None:
        """Close its file, once `fetch` has ended, and leave it for the next pull where there is something in it."""
        if self._spool is not None:
            self._spool.close()


class Downloads:
    """Many blobs, fetched in their order by a few threads. As a context manager: leaving it ends the threads.

    What was fetched is left for the next pull, but for what was removed.
    """

    def __init__(
        self,
        repository: Repository,
        descriptors: Sequence[Descriptor],
        directory: str,
        progress: Callable[[Descriptor, int], None] | None,
    ) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._progress = progress
        self._threads: list[threading.Thread] = []
        self._room = threading.Semaphore(_AHEAD)
        self.all = [Download(repository, descriptor, directory, self._room.release) for descriptor in descriptors]
        self._waiting = self.all[::-1]

    def __enter__(self) -> Downloads:
        try:
            for _ in range(min(PARALLEL, len(self.all))):
                thread = threading.Thread(target=self._work, name="layerstore-download", daemon=True)
                with starting():
                    thread.start()
                self._threads.append(thread)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _work(self) -> None:
        while True:
            self._room.acquire()
            try:
                download = self._waiting.pop()
            except IndexError:
                return
            download.fetch(self._telling(download.descriptor))

    def _telling(self, descriptor: Descriptor) -> Callable[[int], None] | None:
        tell = self._progress
        return None if tell is None else lambda done: tell(descriptor, done)

    def remove(self) -> None:
        """Remove all that was fetched: nobody will ask for it again."""
        for download in self.all:
            download.remove()

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        for download in self.all:
            download.stop()
        self._room.release(PARALLEL)
        for thread in self._threads:
            thread.join(END_SECONDS)
        # A thread that still waits for a server would write to what has the number of its file then.
        if not any(thread.is_alive() for thread in self._threads):
            for download in self.all:
                download.close()
