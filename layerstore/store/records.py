"""The records of fixed length that several modules read or write, as `struct.Struct`.

They are arrays of structs of the C core, which csrc/ describes where it defines them.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOCATION = struct.Struct("<II")
"""Where a content is: pack, slot (`struct ls_location`)."""
RECORD = struct.Struct("<32sQII")
"""Of the log of contents: digest, size in bytes, pack, slot (`struct ls_digest_record`)."""
CONTENT = struct.Struct("<32sQ")
"""Of an index's table of contents: digest, size in bytes (`struct ls_content`)."""
RANGE = struct.Struct("<QQ")
"""Of a file, as `punch_holes` takes it: offset and length in bytes (`struct ls_range`)."""


def packs_of(log: bytes) -> Iterator[int]:
    """The pack of each record of the log of contents."""
    return (pack for _, _, pack, _ in RECORD.iter_unpack(log))
