"""What a stage is after each of its steps: the config, layers and history of an image that need not be stored."""

from __future__ import annotations

import json

from layerstore._core.sha256 import sha256
from layerstore.containers.bundle import DEFAULT_PATH
from layerstore.oci.configs import image_config, platform_of
from layerstore.oci.instructions import ConfigChanges
from layerstore.oci.manifests import go_architecture
from layerstore.types import ChainId, chain_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from layerstore.oci.configs import ImageConfig
    from layerstore.types import DiffId, ImageId

_KEY_VERSION = 2
COMMENT = "layerstore.dockerfile.v1"


class State:
    """Of one stage; used by its thread alone until the stage has ended, and not changed after that.

    base: the image that it begins as, None for `scratch`.
    """

    def __init__(self, base: ImageConfig | None, escape: str) -> None:
        if base is None:
            self._about: dict[str, Any] = {"architecture": go_architecture(), "os": "linux"}
            self.changes = ConfigChanges({}, escape)
        else:
            self._about = platform_of(base.document)
            if author := base.document.get("author"):
                self._about["author"] = author
            self._about["created"] = base.created
            self.changes = ConfigChanges(base.runtime, escape)
        self.diff_ids: list[DiffId] = [] if base is None else list(base.diff_ids)
        self.chain_id: ChainId = chain_ids(self.diff_ids)[-1]
        self.image_id: ImageId | None = None if base is None else base.image_id
        """The stored image that this is; None from its first step on, until it is the result and published."""
        self._history: list[dict[str, Any]] = [] if base is None else [step for step, _ in base.steps()]
        self._latest = ""  # of the steps that were added

    def following(self, escape: str) -> State:
        """What a stage begins as that is FROM this one."""
        state = State(None, escape)
        state._about = dict(self._about)
        state.changes = ConfigChanges(self.changes.config, escape)
        state.diff_ids = list(self.diff_ids)
        state.chain_id = self.chain_id
        state.image_id = self.image_id
        state._history = list(self._history)
        state._latest = self._latest
        return state

    def key(self, *inputs: object) -> str:
        """SHA-256 of the chain and of what else a step depends on, `inputs` (JSON)."""
        return sha256(json.dumps([_KEY_VERSION, self.chain_id, *inputs], sort_keys=True).encode()).hex()

    def begin(self) -> None:
        """What FROM changes: the base's ONBUILD goes, as the stage runs it, and there is a PATH."""
        config = self.changes.config
        if config.pop("OnBuild", None):
            self.image_id = None
        if "PATH" not in self.changes.environment:
            config["Env"] = [*(config.get("Env") or ()), f"PATH={DEFAULT_PATH}"]
            self.image_id = None

    def set_author(self, author: str) -> None:
        self._about["author"] = author

    def add(self, created: str, created_by: str, diff_id: DiffId | None) -> None:
        """One more step of the history, with the layer that it made.

        One from the cache may have been made before those that it follows; the image is as new as the newest.
        """
        step: dict[str, Any] = {"created": created, "created_by": created_by, "comment": COMMENT}
        if diff_id is None:
            step["empty_layer"] = True
        else:
            self.chain_id = chain_ids([diff_id], self.chain_id if self.diff_ids else None)[-1]
            self.diff_ids.append(diff_id)
        self._about["created"] = self._latest = max(self._latest, created)
        self._history.append(step)
        self.image_id = None

    def document(self) -> bytes:
        """The config of the image that this is."""
        return image_config(self._about, self.changes.config, self.diff_ids, self._history)
