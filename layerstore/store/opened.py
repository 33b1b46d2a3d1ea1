"""What everything works on: a store that is open."""

from __future__ import annotations

from layerstore.store.db import Database

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.store.contents import ContentStore, Verify
    from layerstore.store.layout import Layout


class OpenStore:
    """The paths, the database and the contents of a store. Safe for many threads.

    verify: see `layerstore.Store`.
    """

    def __init__(self, layout: Layout, verify: Verify = "never", database: Database | None = None) -> None:
        self.layout = layout
        self.database = database or Database(layout.database, layout.database_lock)
        self._verify: Verify = verify
        self._contents: ContentStore | None = None

    def verifying(self, verify: Verify) -> OpenStore:
        """The same with contents that are verified so."""
        return OpenStore(self.layout, verify, self.database)

    @property
    def contents(self) -> ContentStore:
        contents = self._contents
        if contents is None:
            from layerstore.store.contents import ContentStore

            # Should two threads come here at once, either's will do: it holds nothing but what was read.
            contents = self._contents = ContentStore(self.layout, self.database, self._verify)
        return contents

    def close(self) -> None:
        """Close the database, and let go of what was read of contents. Both can be asked for again."""
        self.database.close()
        self._contents = None
