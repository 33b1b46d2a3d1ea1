"""Operations one after the other, for what a later one may do to what an earlier one has acknowledged."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from campaigns.operations import Operation, Place, Step, box
from layerstore import Store
from layerstore.errors import NotFound

if TYPE_CHECKING:
    from campaigns.samples import Given


def _remove_image(store: Store, name: str) -> None:
    store.remove_image(name)


class Again(Operation):
    """An image that is there is loaded, and again after it was removed: its files are replaced while it is in use."""

    name = "again"

    def before(self, given: "Given") -> None:
        given.load("app", "sibling")
        given.write_archive("app.tar", "app", "docker", "gzip")

    def steps(self, place: Place) -> Sequence[Step]:
        load = Step(partial(Store.load, source=place.inputs / "app.tar"))
        return [load, load, Step(partial(_remove_image, name="app:1")), load]


class Life(Operation):
    """Images and containers that come and go."""

    name = "life"
    unsynced = ("container one",)

    def before(self, given: "Given") -> None:
        given.load("app", "sibling")
        given.box("extent")
        given.write_archive("newer.tar", "newer", "oci", "zstd")

    def steps(self, place: Place) -> Sequence[Step]:
        def remove(store: Store, name: str) -> None:
            try:
                store.container(name).remove()
            except NotFound:
                return  # to create it is not durable

        load = Step(partial(Store.load, source=place.inputs / "newer.tar"))
        return [
            load,
            Step(lambda store: store.create("newer:1", name="one"), durable=False),
            Step(lambda store: store.tag("newer:1", "kept:1")),
            Step(lambda store: box(store).commit("made:1")),
            Step(lambda store: box(store).fork(name="fork"), durable=False),
            Step(partial(remove, name="one")),
            Step(partial(_remove_image, name="newer:1")),
            Step(partial(_remove_image, name="kept:1")),
            Step(lambda store: store.collect_garbage()),
            load,
        ]
