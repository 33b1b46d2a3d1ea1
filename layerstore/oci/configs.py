"""The config of an image, as the OCI image specification and docker write it ("config.md"), checked as it is read."""

from __future__ import annotations

import json

from layerstore.errors import DigestMismatch, InvalidInput
from layerstore.limits import FREE_JSON_BYTES, beyond
from layerstore.types import DiffId, ImageId, Value, parse_digest, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from layerstore.limits import Limits

_EMPTY_TAR = DiffId("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")
"""Of 1,024 zeros: a layer that says nothing, for which docker has a step without a layer."""
_PLATFORM = ("architecture", "variant", "os", "os.version", "os.features")
_LARGEST = 1.7976931348623157e308
_LEADS = [bytes([lead]) for lead in range(0xF0, 0xF5)]
_FOUR_BYTES = rb"[\xf0-\xf4][\x80-\xbf]{3}"
_SURROGATE = rb"\\u[dD][89a-fA-F]"


class ImageConfig(Value):
    """An image's config: the JSON as it is (`document`), its digest (the image's id) and what is read from it often."""

    image_id: ImageId
    document: dict[str, Any]
    diff_ids: tuple[DiffId, ...]
    created: str

    @property
    def runtime(self) -> dict[str, Any]:
        """The "config" object: entrypoint, command, environment and so on."""
        value = self.document.get("config")
        return value if isinstance(value, dict) else {}

    def steps(self) -> list[tuple[dict[str, Any], int | None]]:
        """The steps of the history, oldest first, each with the number of the layer that it made.

        That is None for a step without a layer, or one more than there are layers. Layers that the history says nothing
        of are steps too, empty objects; every layer has one step.
        """
        found: list[tuple[dict[str, Any], int | None]] = []
        layer, count = 0, len(self.diff_ids)
        for step in self.document.get("history") or []:
            makes_layer = not step.get("empty_layer") and layer < count
            found.append((step, layer if makes_layer else None))
            layer += makes_layer
        return found + [({}, number) for number in range(layer, count)]


def parse_json(data: bytes, what: str, limits: Limits | None = None) -> Any:
    """Decode JSON as RFC 8259 has it: UTF-8, no key twice in an object, numbers that there are, text that is text.

    What others would read otherwise would be two documents of one digest. `limits` says how many values there may be;
    without it, what the store itself has kept is read. Raises `LimitExceeded`, `InvalidInput` naming `what`.
    """
    if limits is not None and len(data) > FREE_JSON_BYTES and sum(map(data.count, b",:[{")) > limits.json_values:
        raise beyond(f"{what} has some {sum(map(data.count, b',:[{'))} values", limits, "json_values")
    if limits is not None and 4 * len(data) > 3 * limits.config_bytes and any(lead in data for lead in _LEADS):
        has = f"{what} has {len(data)} bytes with letters beyond U+FFFF, which count for a third more"
        raise beyond(has, limits, "config_bytes")
    try:
        found = json.loads(_text(data), object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
        if b"\\u" in data:
            _check_text(data, found)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} is not JSON: {error}") from error
    return found


def _text(data: bytes) -> str:
    """The text of UTF-8. One letter beyond U+FFFF has all of it take four bytes a letter in Python: in a large document
    they are spelled as the escapes that stand for them."""
    if len(data) > FREE_JSON_BYTES and 0 < sum(map(data.count, _LEADS)) < len(data) // 64:
        import re

        data = re.sub(_FOUR_BYTES, lambda match: json.dumps(match[0].decode())[1:-1].encode(), data)
    return data.decode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _number(text: str) -> float:
    number = float(text)
    if not -_LARGEST <= number <= _LARGEST:
        raise ValueError(f"{text} is no number that there is")
    return number


def _check_text(data: bytes, document: Any) -> None:
    """Raise `ValueError` where an escape stands for half of a letter, which no other program could be told."""
    import re

    if re.search(_SURROGATE, data):
        json.dumps(document, ensure_ascii=False).encode()


def to_json(document: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON without blanks."""
    return json.dumps(document, separators=(",", ":")).encode()


def json_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} is not a JSON object")
    return value


def json_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"{what} is not a JSON list")
    return value


def parse_config(data: bytes, expected: str | None = None, limits: Limits | None = None) -> ImageConfig:
    """Read an image config. `expected` is the digest promised for it, `limits` what is accepted from outside.

    Raises `DigestMismatch`, `InvalidInput`, `LimitExceeded`.
    """
    if limits is not None and len(data) > limits.config_bytes:
        raise beyond(f"the image config has {len(data)} bytes", limits, "config_bytes")
    digest = sha256_digest(data)
    if expected is not None and digest != expected:
        raise DigestMismatch(f"the image config has digest {digest}, but {expected} was promised")
    document = json_object(parse_json(data, "the image config", limits), "the image config")
    rootfs = json_object(document.get("rootfs"), 'the image config\'s "rootfs"')
    if rootfs.get("type") != "layers":
        raise InvalidInput(f'the image config\'s rootfs.type is {rootfs.get("type")!r}; only "layers" is known')
    diff_ids = json_list(rootfs.get("diff_ids") or [], "the image config's rootfs.diff_ids")
    if limits is not None and len(diff_ids) > limits.layers:
        raise beyond(f"the image config names {len(diff_ids)} layers", limits, "layers")
    history = document.get("history")
    if history is not None and not all(
        isinstance(step, dict) for step in json_list(history, 'the config\'s "history"')
    ):
        raise InvalidInput('the image config\'s "history" holds something else than objects')
    created = document.get("created")
    return ImageConfig(
        image_id=ImageId(digest),
        document=document,
        diff_ids=tuple(DiffId(parse_digest(d, "a diff_id of the image config")) for d in diff_ids),
        created=created if isinstance(created, str) else "",
    )


def time_of_making() -> str:
    """The present time for `created`, or SOURCE_DATE_EPOCH's where that is set. Raises `InvalidInput`."""
    import os
    import time
    from datetime import UTC, datetime

    seconds = os.environ.get("SOURCE_DATE_EPOCH") or time.time()
    try:
        return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"SOURCE_DATE_EPOCH is {seconds!r}, not a number of seconds: {error}") from error


def next_config(base: ImageConfig, runtime: dict[str, Any], diff_id: DiffId, step: dict[str, str]) -> bytes:
    """The config of an image that has one more layer than `base`, as JSON.

    Args:
        runtime: its "config" object.
        diff_id: the layer's. A layer that says nothing is left out, and its step says so.
        step: of the history: "created", and "author", "created_by" and "comment" where there are any. Those that are
            empty are left out; the author is the image's, too.
    """
    said = {key: value for key, value in step.items() if value}
    is_empty = says_nothing(diff_id)
    steps = [*(step for step, _ in base.steps()), {**said, **({"empty_layer": True} if is_empty else {})}]
    diff_ids = [*base.diff_ids, *(() if is_empty else (diff_id,))]
    about = {key: said[key] for key in ("created", "author") if key in said}
    return image_config(platform_of(base.document) | about, runtime, diff_ids, steps)


def says_nothing(diff_id: DiffId) -> bool:
    """Whether it is a layer without entries."""
    return diff_id == _EMPTY_TAR


def platform_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the machine that its image is for."""
    return {key: document[key] for key in _PLATFORM if key in document}


def image_config(
    about: Mapping[str, Any], runtime: Mapping[str, Any], diff_ids: Sequence[DiffId], history: Sequence[dict[str, Any]]
) -> bytes:
    """The config of an image as JSON.

    about: its platform, "created" and "author". runtime: its "config" object, of which what is None is left out.
    """
    document = {
        **about,
        "config": {key: value for key, value in runtime.items() if value is not None},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": list(history),
    }
    return to_json(document)
