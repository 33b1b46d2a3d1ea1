"""A build: stages that are needed, side by side where they do not wait for each other, and what becomes of failures."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from layerstore.building.context import open_context
from layerstore.building.dockerfile import parse
from layerstore.building.planning import plan
from layerstore.building.scope import Scope
from layerstore.building.stage import StageBuild
from layerstore.building.state import State
from layerstore.building.workshop import Workshop
from layerstore.errors import NotFound
from layerstore.naming import starting
from layerstore.results import BuildEvent
from layerstore.store import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.building.context import Context
    from layerstore.building.dockerfile import Dockerfile
    from layerstore.building.planning import Plan, PlannedStage
    from layerstore.limits import Limits
    from layerstore.types import ImageId

_AT_ONCE = 2
_STOP_SECONDS = 0.05


def build(shop: Workshop, directory: str, file: str | None) -> ImageId:
    """Build the image of a Dockerfile: `file`, "-" for standard input, or that of the context, `directory`.

    Garbage collection waits for it. See `layerstore.Store.build`.
    """
    path = f"{directory.rstrip('/')}/Dockerfile" if file is None else file
    limits = shop.options.limits
    with open_context(directory, path, limits) as context:
        dockerfile = _read(context, path, limits)
        with locks.garbage(shop.layout):
            planned = plan(
                dockerfile, shop.options.target, shop.options.arguments, shop.find_image,
                lambda text: shop.tell(BuildEvent("warning", 0, 0, 0, text)),
            )  # fmt: skip
            with shop.leftovers.held():
                return _Build(shop, dockerfile, context, planned).run()


def _read(context: Context, path: str, limits: Limits) -> Dockerfile:
    if path == "-":
        return parse(sys.stdin.buffer.read(limits.dockerfile_bytes + 1), "Dockerfile", limits)
    try:
        return parse(context.read(path), os.path.basename(path), limits)
    except FileNotFoundError:
        raise NotFound(f"there is no {path}; name the Dockerfile by -f") from None


class _Build:
    def __init__(self, shop: Workshop, dockerfile: Dockerfile, context: Context, planned: Plan) -> None:
        self._shop = shop
        self._dockerfile = dockerfile
        self._context = context
        self._plan = planned
        self._results: dict[int, State] = {}
        self._scopes: dict[int, Scope] = {}
        self._ended: list[tuple[int, State | BaseException]] = []
        self._count = threading.Semaphore(0)  # of those that have ended
        self._threads: dict[int, threading.Thread] = {}

    def run(self) -> ImageId:
        waiting = list(self._plan.stages)
        try:
            while self._plan.target not in self._results:
                ready = [planned for planned in waiting if planned.needs <= self._results.keys()]
                for planned in ready[: _AT_ONCE - len(self._threads)]:
                    waiting.remove(planned)
                    self._start(planned)
                self._count.acquire()
                number, result = self._ended.pop()
                self._threads.pop(number).join()
                if isinstance(result, BaseException):
                    raise result
                self._results[number] = result
        except BaseException:
            self._stop()
            raise
        unused = self._plan.globals.unused(self._scopes.values())
        if unused:
            self._warn(f"--build-arg {', '.join(unused)}: no ARG asks for it")
        image = self._results[self._plan.target].image_id
        assert image is not None, "the result was published"
        return image

    def _warn(self, text: str) -> None:
        self._shop.tell(BuildEvent("warning", 0, 0, 0, text))

    def _start(self, planned: PlannedStage) -> None:
        escape = self._dockerfile.escape
        if isinstance(planned.base, int):
            state = self._results[planned.base].following(escape)
        else:
            state = State(planned.base, escape)
        state.begin()
        scope = Scope(self._shop.options.arguments, {**self._plan.globals.inherited, **self._plan.globals.declared})
        if isinstance(planned.base, int):
            scope.declared.update(self._scopes[planned.base].declared)
        self._scopes[planned.number] = scope
        is_result = planned.number == self._plan.target
        building = StageBuild(
            self._shop,
            self._dockerfile,
            self._context,
            planned,
            state,
            scope,
            self._results,
            self._plan.total,
            is_result,
        )
        thread = threading.Thread(
            target=self._build,
            args=(planned.number, building, locks.of_this_thread()),
            name=f"layerstore-{planned.number}",
        )
        self._threads[planned.number] = thread
        with starting():
            thread.start()

    def _build(self, number: int, building: StageBuild, held: list[locks.Note]) -> None:
        result: State | BaseException
        try:
            with locks.working_for(held):
                result = building.run()
        except BaseException as error:
            result = error
        self._ended.append((number, result))
        self._count.release()

    def _stop(self) -> None:
        """Have all stages end."""
        for thread in self._threads.values():
            while thread.is_alive():
                self._shop.stop()
                with contextlib.suppress(KeyboardInterrupt):  # a second one: it is on its way
                    thread.join(_STOP_SECONDS)
