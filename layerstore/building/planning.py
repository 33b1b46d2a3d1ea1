"""Which stages a build needs, what each begins from, and which wait for which."""

from __future__ import annotations

from layerstore.building.dockerfile import parse_trigger, wrong
from layerstore.building.scope import Scope, platform, platform_arguments
from layerstore.errors import InvalidInput, LayerstoreError, NotFound
from layerstore.oci.words import expand, split_words
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from layerstore.building.dockerfile import Dockerfile, Instruction, Stage
    from layerstore.oci.configs import ImageConfig


class PlannedStage:
    """A stage that is built.

    base: an image's config, the number of a stage, or None for `scratch`. instructions: with those that the base's
    ONBUILD has before them. needs: the numbers of the stages that it reads. first_step: the number of its FROM among
    the steps of all stages.
    """

    def __init__(self, number: int, stage: Stage, base: ImageConfig | int | None, names: Mapping[str, int]) -> None:
        self.number = number
        self.stage = stage
        self.base = base
        self.instructions: list[Instruction] = list(stage.instructions)
        self.needs: set[int] = {base} if isinstance(base, int) else set()
        self.first_step = 0
        self._names = names

    @property
    def shown_name(self) -> str:
        return self.stage.name or f"stage {self.number}"

    @property
    def names_before(self) -> list[str]:
        """Of the stages that it may read."""
        return [name for name, number in self._names.items() if number < self.number]

    def stage_number(self, source: str) -> int | None:
        """The stage before this one that a `--from` names; None for an image. Raises `InvalidInput`."""
        number = self._names.get(source.lower())
        if number is None and source.isdecimal():
            number = int(source) if len(source) < 10 else self.number
            if number >= self.number:
                raise InvalidInput(
                    f"--from={source[:100]}: a stage reads those before it, and this one is {self.number}"
                )
        return number if number is None or number < self.number else None


class Plan(Value):
    """The stages to be built, in the order of the file, and the number of the one that is the result."""

    def __init__(self, stages: Sequence[PlannedStage], target: int, globals_: Scope) -> None:
        self.stages = stages
        self.target = target
        self.globals = globals_

    @property
    def total(self) -> int:
        """The steps of all stages."""
        return sum(1 + len(planned.instructions) for planned in self.stages)


def plan(
    dockerfile: Dockerfile,
    target: str | None,
    given: Mapping[str, str],
    find_image: Callable[[str], ImageConfig],
    warn: Callable[[str], None],
) -> Plan:
    """Raises `InvalidInput`, `NotFound` and what `find_image` does, with the line."""
    scope = Scope(given, platform_arguments())
    variables = dict(platform_arguments())
    for instruction in dockerfile.arguments:
        try:
            for word in split_words(instruction.text, dockerfile.escape):
                name, equals, default = word.partition("=")
                scope.declare(name, expand(default, variables, dockerfile.escape) if equals else None)
                variables.update(scope.declared)
        except InvalidInput as error:
            raise wrong(dockerfile.name, instruction.line, str(error)) from None
    planner = _Planner(dockerfile, variables, find_image, warn)
    number = planner.number_of(target)
    stages = planner.needed(number)
    step = 1
    for planned in stages:
        planned.first_step = step
        step += 1 + len(planned.instructions)
    return Plan(stages, number, scope)


class _Planner:
    def __init__(
        self,
        dockerfile: Dockerfile,
        variables: Mapping[str, str],
        find_image: Callable[[str], ImageConfig],
        warn: Callable[[str], None],
    ) -> None:
        self._dockerfile = dockerfile
        self._variables = variables
        self._find_image = find_image
        self._warn = warn
        self._names = {stage.name: number for number, stage in enumerate(dockerfile.stages) if stage.name}
        self._planned: dict[int, PlannedStage] = {}

    def number_of(self, target: str | None) -> int:
        """The stage that is asked for: the last one where none is."""
        count = len(self._dockerfile.stages)
        if target is None:
            return count - 1
        number = self._names.get(target.lower(), int(target) if target.isdecimal() and len(target) < 10 else count)
        if number >= count:
            raise NotFound(
                f"{self._dockerfile.name} has no stage {target}; it has {', '.join(self._names) or 'no names'}"
            )
        return number

    def needed(self, number: int) -> list[PlannedStage]:
        """The stage of that number and all that it needs."""
        waiting = [number]
        while waiting:
            at = waiting.pop()
            if at not in self._planned:
                self._planned[at] = self._plan(at)
                waiting += self._planned[at].needs
        return [self._planned[at] for at in sorted(self._planned)]

    def _plan(self, number: int) -> PlannedStage:
        stage = self._dockerfile.stages[number]
        try:
            base = self._base(stage, number)
            planned = PlannedStage(number, stage, base, self._names)
            name, escape = self._dockerfile.name, self._dockerfile.escape
            planned.instructions[:0] = [parse_trigger(text, stage.line, name, escape) for text in self._triggers(base)]
        except LayerstoreError as error:
            raise _with_line(error, self._dockerfile.name, stage.line) from None
        for instruction in planned.instructions:
            try:
                for source in _sources(instruction):
                    needed = planned.stage_number(source)
                    if needed is not None:
                        planned.needs.add(needed)
            except InvalidInput as error:
                raise wrong(self._dockerfile.name, instruction.line, str(error)) from None
        return planned

    def _triggers(self, base: ImageConfig | int | None) -> list[str]:
        """What the base has for those that are FROM it."""
        if isinstance(base, int):
            return [each.text for each in self._dockerfile.stages[base].instructions if each.name == "ONBUILD"]
        return [] if base is None else [str(text) for text in base.runtime.get("OnBuild") or ()]

    def _base(self, stage: Stage, number: int) -> ImageConfig | int | None:
        name = expand(stage.base, self._variables, self._dockerfile.escape)
        if not name:
            raise InvalidInput(f"FROM {stage.base}: nothing is left of it when its variables are replaced")
        asked = expand(stage.platform, self._variables, self._dockerfile.escape)
        if asked and asked != platform():
            self._warn(
                f"{self._dockerfile.name}:{stage.line}: --platform={asked} is ignored: {platform()} is built here"
            )
        earlier = self._names.get(name.lower())
        if earlier is not None and earlier < number:
            return earlier
        return None if name == "scratch" else self._find_image(name)


def _with_line(error: LayerstoreError, name: str, line: int) -> LayerstoreError:
    return error if str(error).startswith(f"{name}:") else type(error)(f"{name}:{line}: {error}")


def _sources(instruction: Instruction) -> Iterator[str]:
    """What an instruction reads beside the context. Raises `InvalidInput`."""
    for flag, value in instruction.flags:
        if flag == "from":
            yield named_source(value)
        elif flag == "mount":
            # Its other fields may have variables, which are not known yet.
            fields = dict(word.partition("=")[::2] for word in value.strip("\"'").split(","))
            yield from (named_source(source) for key, source in fields.items() if key.strip(" \"'").lower() == "from")


def named_source(text: str) -> str:
    """The stage or image that a `from` is, without quotes. Raises `InvalidInput` where it has a variable."""
    if "$" in text:
        raise InvalidInput(
            f"from={text}: what is read is named without variables; have a stage that is FROM {text}, with an ARG "
            "before the first FROM, and name that stage"
        )
    return text.strip(" \"'")
