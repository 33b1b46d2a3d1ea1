"""One stage of a build: its instructions one after another, each taken from the cache or done.

What a step depends on is its key: the chain that it begins with, the instruction with its variables replaced, the
digests of what it reads, SOURCE_DATE_EPOCH; of RUN also what it sees of the config (_SEEN_BY_RUN), of WORKDIR the user.
Not in it are times of files, the rest of the config, the history, secrets, what caches hold, the network, volumes. So
equal steps on equal files are found again whatever build they are in. A step without a layer has no more in the cache
than when it was made: its key has the whole config, so that what changes the config is a step that was never made.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat

from layerstore.building import history
from layerstore.building.copy_and_add import Copy, Item, Text, check_sources, items_of
from layerstore.building.dockerfile import words_of_copy
from layerstore.building.planning import named_source
from layerstore.building.scope import Scope
from layerstore.building.steps import Step
from layerstore.building.workshop import Staged, Stopped, with_line
from layerstore.containers.bundle import Volume
from layerstore.errors import BuildFailed, InvalidInput, LayerstoreError, NotFound
from layerstore.naming import about, open_fd
from layerstore.oci.configs import says_nothing, time_of_making
from layerstore.oci.instructions import exec_form
from layerstore.oci.words import split_words
from layerstore.results import BuildEvent
from layerstore.trees.entries import Entry
from layerstore.types import Value, decode_path, encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerstore.building.built_tree import ImageFiles, Tree
    from layerstore.building.context import Context
    from layerstore.building.dockerfile import Dockerfile, Heredoc, Instruction
    from layerstore.building.mounts import Mount
    from layerstore.building.planning import PlannedStage
    from layerstore.building.state import State
    from layerstore.building.workshop import Workshop
    from layerstore.oci.configs import ImageConfig
    from layerstore.types import DiffId

_OF_CONFIG = {
    *("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME"),
}
_SEEN_BY_RUN = ("Env", "User", "WorkingDir")  # SHELL is in the arguments
_SCRIPTS = "/dev/pipes"


class StageBuild:
    """Builds a stage in the thread that calls `run`.

    results: the states of stages that have ended, by number. total: steps of all stages.
    """

    def __init__(
        self,
        shop: Workshop,
        dockerfile: Dockerfile,
        context: Context,
        planned: PlannedStage,
        state: State,
        scope: Scope,
        results: dict[int, State],
        total: int,
        is_result: bool,
    ) -> None:
        self._shop = shop
        self._dockerfile = dockerfile
        self._context = context
        self._planned = planned
        self._state = state
        self._scope = scope
        self._results = results
        self._total = total
        self._is_result = is_result
        self._number = planned.first_step
        self._tree: Tree | None = None
        self._staged = Staged(shop)

    def run(self) -> State:
        """Do all of it. Its layers are stored then, and where it is the result, the image with its names.

        Raises what a step does, with the line, and `Stopped`; the steps that were done before are in the cache then.
        """
        try:
            with self._staged:
                self._tell("step", self._planned.stage.shown)
                self._tell("made", self._state.chain_id.removeprefix("sha256:")[:12])
                try:
                    for instruction in self._planned.instructions:
                        self._number += 1
                        self._step(instruction)
                except BaseException:
                    if self._staged.has_layers:
                        with contextlib.suppress(LayerstoreError, OSError):  # what came first is told
                            self._staged.publish(self._state)
                    raise
                if self._is_result:
                    self._state.image_id = self._staged.publish(self._state, is_result=True)
                elif self._staged.has_layers:
                    self._staged.publish(self._state)
                return self._state
        finally:
            self._tell("ended")

    def _tell(self, kind: str, text: str = "", stream: int = 0, data: bytes = b"") -> None:
        self._shop.tell(BuildEvent(kind, self._planned.number, self._number, self._total, text, stream, data))

    def _step(self, instruction: Instruction) -> None:
        self._shop.check()
        self._tell("step", instruction.shown)
        try:
            self._state.changes.arguments = self._scope.variables
            if instruction.name in _OF_CONFIG:
                self._config(instruction)
            else:
                _ACTIONS[instruction.name](self, instruction)
        except (Stopped, KeyboardInterrupt):
            raise
        except Exception as error:
            raise with_line(error, self._dockerfile.name, instruction.line) from error

    def _finish(self, created_by: str, inputs: Sequence[object], make: Callable[[], DiffId | None]) -> None:
        """One step: take its layer from the cache, or `make` it (None: it makes none), and go on from there. Where
        another build makes it, that is waited for."""
        shop, state = self._shop, self._state
        key = state.key(shop.epoch, *inputs)
        step = None if shop.options.no_cache else self._staged.find_or_claim(key, state)
        if step is not None:
            self._tell("cached")
            if step.diff_id is not None:
                self._tree = None
            state.add(step.created, created_by, step.diff_id)
        else:
            diff_id = make()
            if diff_id is not None and says_nothing(diff_id):
                diff_id = None
            created = time_of_making()
            state.add(created, created_by, diff_id)
            step = Step(created, diff_id, state.chain_id)
            shop.steps.add(key, step)
            self._staged.made(step)
        self._tell("made", key[:12])

    # What changes the config alone

    def _config(self, instruction: Instruction) -> None:
        name, text = instruction.name, instruction.text
        self._state.changes.apply(f"{name} {text}")
        self._finish_config(history.of_config(name, text, self._state.changes.config), name, text)

    def _finish_config(self, created_by: str, name: str, text: str) -> None:
        """A step that makes no layer."""
        self._finish(created_by, [name, text, self._state.changes.config], lambda: None)

    def _arg(self, instruction: Instruction) -> None:
        for word in split_words(instruction.text, self._dockerfile.escape):
            name, equals, default = word.partition("=")
            if not name:
                raise InvalidInput(f"ARG {word}: a variable has a name before the '='")
            self._scope.declare(name, self._state.changes.expanded(default) if equals else None)
            self._state.changes.arguments = self._scope.variables
        self._finish_config(f"ARG {instruction.text}", "ARG", instruction.text)

    def _shell(self, instruction: Instruction) -> None:
        words = exec_form(instruction.text)
        if not words:
            raise InvalidInput(f'SHELL {instruction.text}: it is a list like ["/bin/bash", "-c"]')
        self._state.changes.config["Shell"] = words
        self._finish_config(history.of_config("SHELL", "", self._state.changes.config), "SHELL", instruction.text)

    def _maintainer(self, instruction: Instruction) -> None:
        self._state.set_author(instruction.text)
        self._finish_config(f"MAINTAINER {instruction.text}", "MAINTAINER", instruction.text)

    def _workdir(self, instruction: Instruction) -> None:
        self._state.changes.apply(f"WORKDIR {instruction.text}")
        path = str(self._state.changes.config["WorkingDir"])
        user = str(self._state.changes.config.get("User") or "")

        def make() -> DiffId | None:
            from layerstore.building.built_tree import NewLayer
            from layerstore.containers import users

            tree = self._current_tree()
            target = tree.place_for(path)
            if tree.is_dir(target) or not target:
                return None
            owner = users.look_up(tree, user)
            layer = NewLayer(tree, (owner.uid, owner.gid), self._shop.now_ns())
            layer.make_directory(target)
            return self._staged.add(layer.entries())

        self._finish(history.of_config("WORKDIR", path, self._state.changes.config), ["WORKDIR", path, user], make)

    # COPY and ADD

    def _copy(self, instruction: Instruction) -> None:
        name, expanded = instruction.name, self._state.changes.expanded
        words = words_of_copy(name, instruction.text, self._dockerfile.escape)
        heredocs = {word: self._heredoc_item(heredoc) for word, heredoc in instruction.heredoc_of(words).items()}
        sources = [expanded(word) for word in words[:-1] if word not in heredocs]
        to = self._absolute(expanded(words[-1]))
        check_sources([*sources, *heredocs], to, name)
        source = instruction.flag("from")
        source = None if source is None else named_source(source)
        files = self._context if source is None else self._files_of(source)
        flags = {
            flag: None if (text := instruction.flag(flag)) is None else expanded(text) for flag in ("chown", "chmod")
        }
        copy = Copy(
            [*items_of(files, sources), *heredocs.values()],
            to,
            **flags,
            keeps_owner=source is not None,
            scratch=self._shop.layout.builds if name == "ADD" else None,
            limits=self._shop.options.limits,
        )

        def make() -> DiffId:
            with contextlib.ExitStack() as stack:
                diff_id = self._staged.add(copy.put(self._current_tree(), self._shop.now_ns(), stack))
            if copy.unpacked:  # what the tree has of an archive cannot be read any more
                self._tree = None
            return diff_id

        created_by = history.of_copy(name, {"from": source, **flags}, [*sources, *heredocs, words[-1]])
        self._finish(created_by, [name, to, flags, copy.digest()], make)

    def _absolute(self, path: str) -> str:
        """Where a destination is: with a slash at its end where it says that it is a directory."""
        is_directory = path.endswith(("/", "/.")) or path == "."
        directory = str(self._state.changes.config.get("WorkingDir") or "/")
        absolute = "/" + posixpath.normpath(posixpath.join("/", directory, path)).lstrip("/")
        return f"{absolute.rstrip('/')}/" if is_directory else absolute

    def _heredoc_item(self, heredoc: Heredoc) -> Item:
        content = heredoc.content
        if heredoc.expands:
            content = self._state.changes.expanded(content, keeps_quotes=True)
        data = encode_path(content)
        entry = Entry(encode_path(heredoc.name), stat.S_IFREG | 0o644, 0, 0, self._shop.now_ns())
        entry.size = len(data)
        entry.source = Text(data) if data else None
        return Item(heredoc.name, [entry])

    def _files_of(self, source: str) -> ImageFiles:
        """The files of a stage or an image."""
        from layerstore.building.built_tree import ImageFiles

        stage = self._stage_of(source)
        diff_ids = self._image_read(source).diff_ids if stage is None else stage.diff_ids
        return ImageFiles(self._shop.index(diff_ids), self._shop.store.contents, source)

    def _image_read(self, source: str) -> ImageConfig:
        """That of a `from` which is no stage."""
        try:
            return self._shop.find_image(source)
        except LayerstoreError as error:
            if "/" in source or ":" in source:  # no stage has such a name
                raise
            said = f"there is no stage {source} (stages: {', '.join(self._planned.names_before) or 'none has a name'})"
            raise type(error)(
                f"{said} and no image {source}" if isinstance(error, NotFound) else f"{said}; {error}"
            ) from None

    def _stage_of(self, source: str) -> State | None:
        number = self._planned.stage_number(source)
        if number is not None and number not in self._planned.needs:
            raise InvalidInput(f"from={source}: a stage that is read is named as it is, not by a variable")
        return None if number is None else self._results[number]

    def _current_tree(self) -> Tree:
        from layerstore.building.built_tree import Tree

        if self._tree is None:
            if self._staged.has_layers:
                self._staged.publish(self._state)
            self._tree = Tree(self._shop.index(self._state.diff_ids), self._shop.store.contents)
        return self._tree

    # RUN

    def _run(self, instruction: Instruction) -> None:
        from layerstore.building import mounts

        changes = self._state.changes
        environment = changes.environment
        given = sorted(f"{k}={v}" for k, v in self._scope.declared.items() if k not in environment)
        proxies = [f"{k}={v}" for k, v in self._scope.predefined.items() if k not in environment]
        args, script = self._command_line(instruction)
        wanted = [mounts.parse_mount(changes.expanded(value)) for flag, value in instruction.flags if flag == "mount"]
        network = instruction.flag("network") or "default"
        if network not in ("default", "host", "none"):
            raise InvalidInput(f"RUN --network={network}: it is default, host or none")
        if network == "host" and self._shop.options.network == "none":
            raise InvalidInput("RUN --network=host: this build was given no network; build without --network none")
        shown = [self._shown_by(mount) for mount in wanted]
        digests = [None if entries is None else mounts.digest_of_bind(entries) for entries in shown]
        read = [[mount.kind, mount.values, digest] for mount, digest in zip(wanted, digests, strict=True)]

        def make() -> DiffId:
            mounted = list(zip(wanted, shown, strict=True))
            return self._run_and_keep(args, [*proxies, *given], network, mounted, script)

        said = args if script is None else [script.content]
        seen = [changes.config.get(field) for field in _SEEN_BY_RUN]
        inputs = ["RUN", args, given, seen, read, network, None if script is None else script.content]
        self._finish(history.of_run(said, given), inputs, make)

    def _command_line(self, instruction: Instruction) -> tuple[list[str], _Script | None]:
        """The arguments, and the script that they run where a heredoc is one."""
        words = exec_form(instruction.text)
        if words is not None:
            if not words:
                raise InvalidInput("RUN []: there is no command")
            return words, None
        text = instruction.text
        if instruction.heredocs:
            first = instruction.heredocs[0]
            if len(instruction.heredocs) == 1 and len(split_words(text, self._dockerfile.escape)) == 1:
                if first.content.startswith("#!"):
                    script = _Script(f"{_SCRIPTS}/{first.name}", first.content)
                    return [script.path], script
                text = first.content
            else:
                text += "\n" + "".join(f"{heredoc.content}{heredoc.name}\n" for heredoc in instruction.heredocs)
        shell = list(self._state.changes.config.get("Shell") or ("/bin/sh", "-c"))
        return [*shell, text], None

    def _shown_by(self, mount: Mount) -> list[Entry] | None:
        """What a bind shows; None of another mount, of which nothing counts for the cache."""
        if mount.kind != "bind":
            return None
        source = mount.values.get("from")
        files = self._context if not source else self._files_of(source)
        entries = list(files.below(files.resolve(mount.source)))
        if not entries:
            raise NotFound(f"--mount: source={mount.source} is a socket, and a build context has none")
        return entries

    def _run_and_keep(
        self,
        args: Sequence[str],
        env: Sequence[str],
        network: str,
        wanted: Sequence[tuple[Mount, list[Entry] | None]],
        script: _Script | None,
    ) -> DiffId:
        """Run it, and make a layer of what it changed."""
        from layerstore.building import running
        from layerstore.containers import upper

        shop, state = self._shop, self._state
        image = self._staged.publish(state)
        with contextlib.ExitStack() as stack:
            volumes, others, secrets = self._mounts(stack, wanted)
            if script is not None:
                volumes.append(script.volume(stack.enter_context(shop.leftovers.temporary())))
            row = stack.enter_context(shop.mounted(image, self._planned.shown_name, state.diff_ids))
            self._tell("running", row.id[:12])
            asked = shop.options.network if network == "default" else network
            document = {"config": state.changes.config}
            command = running.Command(
                document, args, [*env, *secrets], "none" if asked == "none" else "host",
                [*shop.options.volumes, *volumes], others,
            )  # fmt: skip
            status = running.run(shop, row, command, lambda stream, data: self._tell("output", "", stream, data))
            if status:
                raise BuildFailed(f"RUN {' '.join(args)}: the command ended with status {status}", status)
            fd = stack.enter_context(open_fd(shop.containers.upper(row.id), os.O_RDONLY | os.O_DIRECTORY))
            self._tree = None
            index, contents = shop.index(state.diff_ids), shop.store.contents
            if shop.epoch is not None:
                return self._staged.add(upper.entries([fd], index, contents))
            return self._staged.add_tar(lambda clone: upper.tar_pieces([fd], index, contents, clone))

    def _mounts(
        self, stack: contextlib.ExitStack, wanted: Sequence[tuple[Mount, list[Entry] | None]]
    ) -> tuple[list[Volume], list[dict[str, object]], list[str]]:
        """What --mount asks for, each with what it shows if it is a bind: volumes, mounts of the runtime's config,
        environment variables."""
        from layerstore.building import mounts

        shop = self._shop
        volumes: list[Volume | None] = []
        caches: list[tuple[Mount, str]] = []
        others: list[dict[str, object]] = []
        variables: list[str] = []
        for mount, shown in wanted:
            target = self._absolute(mount.target).rstrip("/")
            if not target:
                raise InvalidInput(f"--mount: target={mount.target}: a mount cannot cover the root directory")
            if mount.kind == "tmpfs":
                others.append(mounts.tmpfs(mount, target))
            elif mount.kind == "cache":
                caches.append((mount, target))
                volumes.append(None)
            elif mount.kind == "secret":
                data = mounts.secret_data(mount, shop.options.secrets)
                if data is not None and "env" in mount.values:
                    variables.append(f"{mount.values['env']}={decode_path(data)}")
                if data is not None and ("env" not in mount.values or "target" in mount.values):
                    memory = stack.enter_context(shop.leftovers.temporary(in_memory=True))
                    volumes.append(mounts.write_secret(mount, data, target, memory))
            else:
                place = self._bind_source(stack, mount, shown or [])
                volumes.append(Volume(place, target, mount.is_read_only))
        # At last, as others may wait for them: nothing is made or mounted while they do.
        of_caches = iter(
            stack.enter_context(mounts.caches(caches, f"{shop.layout.builds}/caches", shop.check)) if caches else ()
        )
        # A volume may be in another one that stands before it.
        in_order = [next(of_caches) if volume is None else volume for volume in volumes]
        return in_order, others, variables

    def _bind_source(self, stack: contextlib.ExitStack, mount: Mount, shown: list[Entry]) -> str:
        """Where on the host what a bind shows is; what is written there is lost."""
        from layerstore.building import mounts

        shop = self._shop
        source = mount.values.get("from")
        if not source:
            return mounts.write_context(shown, stack.enter_context(shop.leftovers.temporary()))
        stage = self._stage_of(source)
        if stage is None:
            config = self._image_read(source)
            image, diff_ids = config.image_id, list(config.diff_ids)
        else:
            with Staged(shop) as staged:
                image, diff_ids = staged.publish(stage), stage.diff_ids
        row = stack.enter_context(shop.mounted(image, source, diff_ids))
        found = self._files_of(source).resolve(mount.source)
        return f"{shop.containers.root(row.id)}/{found}".rstrip("/")


class _Script(Value):
    """A heredoc that begins with #!: a file that is run."""

    path: str
    content: str

    def volume(self, directory: str) -> Volume:
        place = f"{directory}/script"
        with about(place), open(place, "x") as file:
            file.write(self.content)
            os.fchmod(file.fileno(), 0o755)
        return Volume(place, self.path, read_only=True)


_ACTIONS: dict[str, Callable[[StageBuild, Instruction], None]] = {
    "ADD": StageBuild._copy,
    "ARG": StageBuild._arg,
    "COPY": StageBuild._copy,
    "MAINTAINER": StageBuild._maintainer,
    "RUN": StageBuild._run,
    "SHELL": StageBuild._shell,
    "WORKDIR": StageBuild._workdir,
}
