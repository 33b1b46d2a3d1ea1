"""Sending one blob: "Pushing blobs" of the OCI distribution specification.

What is sent can be made again from its beginning, always the same; so after a failure the registry is asked what it
has, and the rest is sent.
"""

from __future__ import annotations

import contextlib
import itertools
import re

from layerstore.errors import DigestMismatch, LayerstoreError, RegistryError
from layerstore.registry.pace import PACE_BYTES
from layerstore.registry.transport import Transient, discard, failure, target_of
from layerstore.types import sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from layerstore.layers.blobs import LayerBlob
    from layerstore.registry.client import Answer, Client, Repository
    from layerstore.store.pieces import Piece
    from layerstore.types import Digest

WHOLE_BYTES = 4 << 20
"""Blobs up to this size are sent in one request with their length, and sent again whole."""
_BYTES = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")


class _Stream:
    """The bytes of a blob from one on, while all of them are read."""

    def __init__(self, pieces: Iterable[Piece], skip: int, on_the_way: Callable[[int], None]) -> None:
        self._pieces = pieces
        self._skip = skip
        self._on_the_way = on_the_way

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        for piece in self._pieces:
            rest = memoryview(piece)[max(0, self._skip - at) :]
            at += len(piece)
            if rest:
                yield bytes(rest)
            self._on_the_way(at)


class Upload:
    """One blob on its way to a repository. Not for two threads at once.

    `progress` is told the bytes sent. Once the client's patience has `stopped`, what is being sent fails.
    """

    def __init__(self, repository: Repository, progress: Callable[[int], None] | None = None) -> None:
        self._repository = repository
        self._client: Client = repository.client
        self._scopes = repository.writing
        self._progress = progress
        self._location: str | None = None

    def mount(self, digest: Digest, source: str) -> bool:
        """Have the repository show a blob of another one; else an upload has begun, or will, as without.

        Once one has begun this is not asked for again. Raises `Transient`, and `RegistryError` for an upload that
        begins nowhere.
        """
        if self._location is not None:
            return False
        scopes = (*self._scopes, f"repository:{source}:pull")
        url = f"{self._repository.name}/blobs/uploads/?mount={digest}&from={source}"
        try:
            answer = self._client.call("POST", url, scopes, {201, 202})
        except Transient:
            raise
        except RegistryError:
            return False  # access to the other repository is denied, or the registry knows no mounts
        if answer.status == 202:
            self._take_location(answer)
        return answer.status == 201

    def send(self, new_blob: Callable[[], LayerBlob]) -> LayerBlob:
        """Send a blob, which each call of `new_blob` gives from its beginning.

        Raises what reading it does, `AccessDenied`, `RegistryError`, `DigestMismatch`. Nothing is left behind then, as
        far as the registry can be reached.
        """
        blob = new_blob()
        try:
            with contextlib.closing(iter(blob)) as pieces:
                head, is_whole = _head(pieces)
                if is_whole:
                    self._send_whole(blob.digest, b"".join(head))
                else:
                    blob = self._send_stream(blob, head, pieces, new_blob)
        except BaseException:
            self._cancel()
            raise
        return blob

    def send_bytes(self, data: bytes) -> None:
        """Send a small blob. Raises as `send`."""
        self._send_whole(sha256_digest(data), data)

    def _send_whole(self, digest: Digest, data: bytes) -> None:
        failures = 0
        while True:
            try:
                self._finish(digest, data)
                break
            except Transient as error:
                failures += 1
                self._client.patience.wait(failures, error)
                if self._repository.has_blob(digest, self._scopes):
                    break
                self._location = None
        self._on_the_way(len(data))

    def _send_stream(
        self,
        blob: LayerBlob,
        head: Sequence[Piece],
        rest: Generator[Piece, None, None],
        new_blob: Callable[[], LayerBlob],
    ) -> LayerBlob:
        """Send what `head` and `rest` are of a blob; after a failure, what is missing of a new one. Gives the last."""
        failures, have, reached = 0, 0, 0
        if self._location is None:
            self._begin()
        while True:
            is_sent = False
            try:
                # urllib3's errors refer to frames that refer to them, and to what was sent. Left to a garbage
                # collection the blob's threads would be ended in any thread, under any lock.
                with contextlib.closing(rest):
                    self._patch(_Stream(itertools.chain(head, rest), have, self._on_the_way))
                is_sent = True
                self._finish(blob.digest)
                return blob
            except Transient as error:
                failures += 1
                self._client.patience.wait(failures, error)
            if is_sent and self._repository.has_blob(blob.digest, self._scopes):
                self._location = None
                return blob
            have = self._held()
            if have - reached >= PACE_BYTES:
                failures, reached = 0, have
            blob = new_blob()
            head, rest = (), iter(blob)

    def _on_the_way(self, done_bytes: int) -> None:
        if self._client.patience.stopped.is_set():
            raise RegistryError("the push was given up")
        if self._progress is not None:
            self._progress(done_bytes)

    def _held(self) -> int:
        """The bytes that the registry has of this upload; a new one is begun where it does not know it any more."""
        assert self._location is not None
        answer = self._client.call("GET", self._location, self._scopes, {204, 400, 404, 416})
        match = _RANGE.fullmatch(answer.fields.get("range", ""))
        if answer.status != 204 or match is None:
            self._begin()
            return 0
        self._take_location(answer)
        # "0-0" is one byte to the specification, and none to distribution and what is built on it: one is sent again
        # where it was there, which the digest tells.
        end = int(match[1])
        return end + 1 if end else 0

    def _begin(self) -> None:
        url = f"{self._repository.name}/blobs/uploads/"
        self._take_location(self._client.call("POST", url, self._scopes, {202}, headers={"Content-Length": "0"}))

    def _take_location(self, answer: Answer) -> None:
        place = answer.fields.get("location")
        if not place:
            raise RegistryError(f"{self._client.registry} accepts an upload and does not say where to (no Location)")
        self._location = target_of(answer.url, place)

    def _patch(self, stream: _Stream) -> None:
        assert self._location is not None
        response = self._client.open("PATCH", self._location, self._scopes, _BYTES, stream)
        place = response.headers.get("Location")
        if response.status not in (202, 204, 201):
            raise failure(response, "PATCH", self._location)
        discard(response)
        if place:
            self._location = target_of(self._location, place)

    def _finish(self, digest: Digest, data: bytes | None = None) -> None:
        """Have the upload become the blob; `data` where nothing of it was sent before."""
        if self._location is None:
            self._begin()
        assert self._location is not None
        url = f"{self._location}{'&' if '?' in self._location else '?'}digest={digest}"
        response = self._client.open("PUT", url, self._scopes, _BYTES, data or b"")
        if response.status not in (201, 204):
            raise failure(response, "PUT", url)
        said = response.headers.get("Docker-Content-Digest")
        discard(response)
        if said and said.startswith("sha256:") and said != digest:
            raise DigestMismatch(f"{self._client.registry} has {said} where {digest} was sent; push again")
        self._location = None

    def _cancel(self) -> None:
        if self._location is not None:
            with contextlib.suppress(LayerstoreError):
                discard(self._client.open("DELETE", self._location, self._scopes))


def _head(pieces: Iterator[Piece]) -> tuple[list[Piece], bool]:
    """The first pieces of a blob, some more than `WHOLE_BYTES`, and whether that is all."""
    head: list[Piece] = []
    size = 0
    for piece in pieces:
        head.append(piece)
        size += len(piece)
        if size > WHOLE_BYTES:
            return head, False
    return head, True
