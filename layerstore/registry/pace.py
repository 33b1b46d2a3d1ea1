"""Connections to registries that are given up where the other side is too slow: a silence has a limit of its own, and a
server that gives, or takes, a byte now and then would keep us for ever."""

from __future__ import annotations

import http.client
import io
import time

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

PACE_BYTES = 64 << 10
PACE_SECONDS = 60.0
"""What gives, or takes, less than `PACE_BYTES` in so many seconds that are waited for it is given up: 1 KiB/s, less
than a modem. The head of an answer, and a body that ends before, are to be here within that time."""


class TooSlow(TimeoutError):
    """Less came than that."""


class _Incoming(io.RawIOBase):
    """What a socket receives, as long as it is fast enough."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.restart()

    def restart(self) -> None:
        """Begin to count anew."""
        self._waited_seconds = 0.0
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any) -> int | None:
        begin = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._waited_seconds += time.monotonic() - begin
        self._bytes += count or 0
        if count and self._waited_seconds >= PACE_SECONDS:
            if self._bytes < PACE_BYTES:
                raise TooSlow(f"it gave {self._bytes} bytes in {self._waited_seconds:.0f} s")
            self.restart()
        return count

    def close(self) -> None:
        try:
            self._raw.close()
        finally:
            super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self._incoming = _Incoming(self.fp.detach())
        self.fp = io.BufferedReader(self._incoming)

    def begin(self) -> None:
        super().begin()
        self._incoming.restart()


class _Paced(http.client.HTTPConnection):
    response_class = _Response

    def send(self, data: Any) -> None:
        if not isinstance(data, bytes):
            super().send(data)
            return
        for at in range(0, len(data), PACE_BYTES):
            if self.sock is not None:
                self.sock.settimeout(PACE_SECONDS)  # for all of what is sent at once
            try:
                super().send(data[at : at + PACE_BYTES])
            except TimeoutError:
                raise TooSlow(f"it took less than {PACE_BYTES} bytes in {PACE_SECONDS:.0f} s") from None


class _PlainConnection(_Paced, HTTPConnection):
    pass


class _SecureConnection(_Paced, HTTPSConnection):
    pass


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


POOLS = {"http": _PlainPool, "https": _SecurePool}
"""For `urllib3.PoolManager.pool_classes_by_scheme`."""
