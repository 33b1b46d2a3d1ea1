"""What the library tells its callers: what changed, the history and layers of an image, progress of an import."""

from __future__ import annotations

from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from layerstore.types import DiffId, ImageId

    ProgressCallback: TypeAlias = Callable[["Progress"], None]


class Change(Value):
    """One line of what a container or a layer changed, or of a comparison of images.

    `kind` is "A" (added), "C" (changed) or "D" (deleted); `path` is absolute.
    """

    def __init__(self, kind: str, path: str) -> None:
        self.kind = kind
        self.path = path


class HistoryEntry(Value):
    """One line of an image's history, newest first.

    `image_id` is None where the step has no image of its own in the store (docker prints `<missing>`); `size_bytes` is
    the sum of the sizes of the layer's regular files, 0 for a step without a layer.
    """

    image_id: ImageId | None
    created: str
    created_by: str
    comment: str
    size_bytes: int
    empty_layer: bool


class Printed(Value):
    """A line, or a part of one, that a container printed.

    `data` ends with a newline where that was printed, `stream` is "stdout" or "stderr", `stamp` when it came, as RFC
    3339 has it, in UTC with nanoseconds.
    """

    def __init__(self, data: bytes, stream: str, stamp: str) -> None:
        self.data = data
        self.stream = stream
        self.stamp = stamp

    @property
    def time(self) -> float:
        """`stamp` as seconds since 1970."""
        from datetime import UTC, datetime

        whole, _, fraction = self.stamp.removesuffix("Z").partition(".")
        return datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")


class Running(Value):
    """A process in a container: its ids on this machine, CPU time, when it was started (seconds since 1970), and its
    command with the arguments."""

    pid: int
    ppid: int
    uid: int
    cpu_seconds: float
    started: float
    threads: int
    command: list[str]


class Stats(Value):
    """What a container takes: CPU time since its start, memory now and at most (the machine's where it has no limit),
    processes and threads. Memory is its control group's, else what its processes have, shared pages in shares."""

    cpu_seconds: float
    memory_bytes: int
    memory_limit_bytes: int
    pids: int


class Snapshot(Value):
    """A moment of a container that it can be rolled back to; seconds since the epoch."""

    name: str
    created_seconds: float


class LayerSummary(Value):
    """What a layer brought to its image, and what later layers left of it.

    `number` counts from 0 at the bottom. `created_by` is the step of the image's history that made the layer, "" where
    it has none. `size_bytes` is the sum of the sizes of the regular files in the layer's tar, as `history` shows it.

    Paths, directories too, that it brought are `added` where the layers below did not show them, else `changed`;
    `hidden` are those that it took away, all that was in a directory included. A directory that is described again as
    it was is no change.

    `added_bytes` are those of its regular files: less than `size_bytes` where the tar has a path twice. Of these,
    `wasted_bytes` are in files that no path shows any more, because later layers replaced or hid them.
    """

    number: int
    diff_id: DiffId
    created_by: str
    size_bytes: int
    added: int
    changed: int
    hidden: int
    added_bytes: int
    wasted_bytes: int


class Version(Value):
    """What an image's layer has at a path, and how that ended.

    `path` is where the path that was asked for leads: absolute, with no symlink in it other than the last component.

    `layer` counts from 0 at the bottom. `kind` is "file", "directory", "symlink", "character device", "block device",
    "fifo" or "socket"; `mode` the permission bits; `mtime_ns` nanoseconds since the epoch; `target` a symlink's.
    `linked_to` is the absolute path in the layers below that it is a hard link to, None for what is no such link.

    The version ended by layer `ended_by`, None while it is visible. `ended_how`: it was "replaced" or "deleted", or a
    directory above it was: "directory replaced" (by what is none), "directory deleted", or "directory emptied" (an
    opaque directory hides what the layers below have in it). `ended_at` is the absolute path where that was done.
    """

    path: str
    layer: int
    diff_id: DiffId
    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    target: str | None
    linked_to: str | None
    ended_by: int | None
    ended_how: str | None
    ended_at: str | None


class ImageUsage(Value):
    """What an image takes, bytes.

    `size_bytes` is the sum of the files of its layers, as `Image.size_bytes` and docker have it. Of these every content
    is stored once: `hot_bytes` as it is, `cold_bytes` in cold packs, compressed. There a content takes its part of what
    is compressed with it; a large one what its chunks take; one that is written as a difference that, and not what it
    differs from. What was thawed may take both.

    Together these are `shared_bytes`, those of contents that another image has or needs too, and `unique_bytes`, those
    of others. `reclaimable_bytes` would be given back if this image alone were removed: what is unique, or nothing
    while one of its `containers` (a number) uses it. `is_frozen`: it was frozen, and not used since.
    """

    image_id: ImageId
    names: list[str]
    size_bytes: int
    hot_bytes: int
    cold_bytes: int
    shared_bytes: int
    unique_bytes: int
    reclaimable_bytes: int
    containers: int
    is_frozen: bool


class ContainerUsage(Value):
    """What a container takes: the bytes on disk of its writable layer and snapshots. A log that forks share counts for
    each whose present state or snapshot began in it, a frozen upper for each that stands on it."""

    container_id: str
    name: str | None
    image_id: ImageId
    image_name: str
    state: str
    size_bytes: int


class Part(Value):
    """A part of what a store takes: how many things, how many of them are in use, bytes of all, and those that would be
    given back with what is not in use."""

    count: int
    active: int
    size_bytes: int
    reclaimable_bytes: int


class Usage(Value):
    """What a store takes: of each image, newest first, of each container, and in all by the names of `parts`.

    "images": all images, and the bytes of hot contents; in use are those that have containers. "cold": frozen images,
    and the bytes of cold packs, of which those that nothing needs are given back by `collect_garbage`. "containers": in
    use are those that are mounted or run. "derived": merged indexes and tree images; in use are trees that are mounted.
    "build cache", "downloads": what failed pulls have left. "metadata": indexes and recipes of layers, manifests and
    configs. "garbage": what else `collect_garbage` gives back.
    """

    images: list[ImageUsage]
    containers: list[ContainerUsage]
    parts: dict[str, Part]


class Frozen(Value):
    """What a freeze did: the images, how many contents were written to a cold pack, their bytes before and as they are
    stored."""

    images: list[ImageId]
    contents: int
    content_bytes: int
    stored_bytes: int


class Pruned(Value):
    """What was removed, or would be: ids of containers with their names (None without one), ids of images with theirs,
    contents dropped, bytes given back; and how many images and containers stay for no other reason than that they came
    so short a time ago. `frozen` and `not_frozen` are those of the collection of garbage
    (`layerstore.space.garbage.Collected`)."""

    containers: dict[str, str | None]
    images: dict[ImageId, list[str]]
    contents: int
    freed_bytes: int
    young_images: int
    young_containers: int
    frozen: Frozen | None = None
    not_frozen: Exception | None = None


class FreezeEstimate(Value):
    """What `freeze` would do to `images`, a number: `content_bytes` of hot contents would be given back. Of these
    `written_bytes` are in no cold pack yet, and would take about `stored_bytes` in one, as `sample_bytes` of them do:
    where that is all of them, it is what they would take.
    """

    images: int
    content_bytes: int
    stored_bytes: int
    written_bytes: int
    sample_bytes: int

    @property
    def saved_bytes(self) -> int:
        """What freezing would save."""
        return self.content_bytes - self.stored_bytes


class DedupStats(Value):
    """What it saves to store images so, step by step, bytes.

    `images_bytes` are the files of every image by itself; `layers_bytes` those of each layer once, as docker and podman
    keep them; `contents_bytes` the contents of files, each once. Of the bytes of layers `repeated_bytes` are in files
    that a layer has more than once. `hot_bytes` and `cold_bytes` are what the contents take now; `freezing` says what
    would become of that, None where it was not asked for. `images` are those that this is of, newest first: what each
    shares is what it has in common with others of them.
    """

    images: list[ImageUsage]
    images_bytes: int
    layers_bytes: int
    repeated_bytes: int
    contents_bytes: int
    hot_bytes: int
    cold_bytes: int
    freezing: FreezeEstimate | None


class Synced(Value):
    """What a sync sent: the images that the other store has now; how many layers of theirs it lacked; how many contents
    of these, and their bytes; and the bytes that went there and came back for all of it."""

    images: list[ImageId]
    layers: int
    contents: int
    content_bytes: int
    sent_bytes: int
    received_bytes: int


class Progress(Value):
    """How far a long operation is: `done_bytes` of `total_bytes` (None when unknown) of `what`.

    `stage` is "import" while something is read, "stored" for a layer that is in the store already and passed over,
    "save" while a layer is saved.

    Of a pull and a push `what` is a layer's diff_id, and the bytes are its blob's: "waiting" for one that is to come or
    go, "download" while it comes, "import" while it is stored, "imported" once it is; "upload" while it is sent,
    "uploaded", "stored" where the other side has it already, "mounted" where the registry had it in the repository
    `source`. At "manifest" `what` is the digest of the manifest or index, at "warning" a text that the registry has for
    its users, which is told once.

    Of a sync `what` is a name or id of the image at "compare", while contents are read and compared with those that the
    other side has, and at "send"; and a layer's diff_id at "import", while the other side stores it, of whose bytes
    there is no total.
    """

    stage: str
    what: str
    done_bytes: int
    total_bytes: int | None
    source: str = ""


def telling(
    progress: ProgressCallback | None, stage: str, what: str, total_bytes: int | None
) -> Callable[[int], None] | None:
    """What tells `progress` how many bytes are done; None where nobody wants to be told."""
    return None if progress is None else lambda done: progress(Progress(stage, what, done, total_bytes))


class BuildEvent(Value):
    """What a build is doing.

    `kind` is "step" (an instruction, `text`, begins), "cached" (what it made is taken from the cache), "running" (its
    command begins, in the container `text`), "output" (of the command, `data`, on the stream 1 or 2, standard output or
    error), "made" (it is done, and `text` are 12 digits that stand for the state of the stage), "ended" (the stage has,
    well or not) or "warning" (`text`).

    `stage` counts stages from 0 as they are in the file. `number` is the step's, from 1, of `total` in all stages;
    those of independent stages come mixed, as they happen.
    """

    kind: str
    stage: int
    number: int
    total: int
    text: str = ""
    stream: int = 0
    data: bytes = b""


class Damage(Value):
    """Something in a store that is not as it was written.

    `what` it is: "content" (of files of images), "pack", "pack image", "digest log", "layer" (its index, or what it
    lacks), "recipe", "chain", "blob", "image" (what the database says of one), "container", "log", "build step",
    "database" or "format". `path` is the file that it is in, or should be; `detail` says what is wrong with it, and of
    a content which files show it. `images` are the ids of those that need it. `repaired`: it is as it should be again;
    what cannot be made again is not, until it is loaded or pulled.
    """

    what: str
    path: str
    detail: str
    images: tuple[ImageId, ...] = ()
    repaired: bool = False


class CheckReport(Value):
    """What a check of a store found.

    `notes` are of what a crash or power cut leaves, and damage may look like: the end of a log that is no whole
    operation. `contents` counts the contents of files that were looked at, `bytes` what was compared with digests; a
    quick check reads none.
    """

    damages: tuple[Damage, ...]
    notes: tuple[Damage, ...]
    contents: int
    bytes: int
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether there is no damage, or none any more."""
        return all(damage.repaired for damage in self.damages)
