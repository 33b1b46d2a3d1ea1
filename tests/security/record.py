"""`python -m security.record` runs the probe in our, docker's and podman's default container, as root and as another
user, and writes what it says to results.json and the tables of docs/security.md. `make security` does that.

It fails, and writes nothing, where ours allows what docker's refuses, or a difference has no explanation (judging.py).
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from bench.peers import Committing, Docker, Podman, output
from layerstore import Store
from security import judging, probing
from security.probing import USERS, Answers, Found

RESULTS = Path(__file__).with_name("results.json")
PAGE = probing.ROOT / "docs" / "security.md"
BEGIN, END = "<!-- probe: begin -->\n", "<!-- probe: end -->\n"
COMMAND = "make security"
ENGINES = ("layerstore", "docker", "podman")

Record = dict[tuple[str, str], Answers]
"""Answers by engine and user."""


def measure() -> tuple[Record, dict[str, str]]:
    """What the probe says in each engine's container for each user; the versions of the engines."""
    found: Record = {}
    versions = {}
    with tempfile.TemporaryDirectory(prefix="ls-security-", dir="/var/tmp") as scratch, probing.host() as facts:
        directory = Path(scratch)
        archived = probing.archive(probing.compiled(directory))
        (directory / "image.tar").write_bytes(archived)
        with Store(directory / "store", create=True) as store:
            probing.load(store, archived)
        for name, user in USERS.items():
            found["layerstore", name] = probing.parse(probing.ours(directory / "store", user, facts))
        kinds: tuple[type[Committing], ...] = (Docker, Podman)
        for kind in kinds:
            with kind(directory, directory / "r") as peer:
                versions[peer.name] = output([*peer.command("version", "--format", "{{.Client.Version}}")])
                peer.load(directory / "image.tar")
                for name, user in USERS.items():
                    found[peer.name, name] = probing.parse(probing.theirs(peer, user, facts))
    return found, versions


def faults(found: Record) -> list[str]:
    """What must not be: more allowed than by docker; differences that nobody explained."""
    lines = []
    for name in USERS:
        ours, docker, podman = (found[engine, name] for engine in ENGINES)
        more = judging.more_than(ours, docker)
        lines += [f"as {name}, ours allows what docker's refuses: {': '.join(thing)}" for thing in more]
        for thing in judging.differences(ours, [docker, podman]):
            if judging.explanation(thing) is None and thing not in [*judging.EXCUSED, *more]:
                lines.append(f"as {name}, ours differs, and nothing says why: {': '.join(thing)}")
    return lines


def differing(found: Record) -> list[tuple[str, str]]:
    """What ours answers otherwise than docker's or podman's to any user, in the order of the trials."""
    different = set()
    for name in USERS:
        ours, *others = (found[engine, name] for engine in ENGINES)
        different.update(judging.differences(ours, others))
    return [thing for thing in found["layerstore", "root"] if thing in different]


# The file of results: a line for each thing that was tried


def written(found: Record, versions: dict[str, str]) -> str:
    head = {
        "command": COMMAND,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"Linux {platform.release()}",
        "versions": versions,
        "containers": [list(key) for key in found],
    }
    rows = []
    for thing in next(iter(found.values())):
        given = [answers[thing] for answers in found.values()]
        words = [f"{'allowed' if answer.allowed else 'refused'} {answer.why}".strip() for answer in given]
        rows.append(f"  {json.dumps([*thing, *words])}")
    return json.dumps(head, indent=1).removesuffix("\n}") + ',\n "answers": [\n' + ",\n".join(rows) + "\n ]\n}\n"


def read(text: str) -> Record:
    document = json.loads(text)
    found: Record = {(engine, user): {} for engine, user in document["containers"]}
    for group, name, *answers in document["answers"]:
        for key, answer in zip(found, answers, strict=True):
            word, _, why = answer.partition(" ")
            found[key][group, name] = Found(word == "allowed", why)
    return found


# The page


def tables(text: str) -> str:
    """What is between the marks of the page, of the text of the results."""
    document, found = json.loads(text), read(text)
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [f"`{document['command']}`, {document['date']}, {document['machine']}: {versions}.\n\n"]
    things = list(next(iter(found.values())))
    lines.append("### Differences\n\n| what | layerstore | docker | podman | why ours is so |\n|---|---|---|---|---|\n")
    for thing in differing(found):
        why = judging.EXCUSED.get(thing) or judging.explanation(thing) or ""
        lines.append(f"| {': '.join(thing)} | {_cells(found, thing)} | {why} |\n")
    for group, members in itertools.groupby(things, key=lambda thing: thing[0]):
        lines.append(f"\n### {group[0].upper()}{group[1:]}\n\n")
        lines.append("| what | layerstore | docker | podman |\n|---|---|---|---|\n")
        lines += [f"| {thing[1]} | {_cells(found, thing)} |\n" for thing in members]
    return "".join(lines)


def _cells(found: Record, thing: tuple[str, str]) -> str:
    cells = []
    for engine in ENGINES:
        answers = [_cell(found[engine, user][thing]) for user in USERS]
        cells.append(answers[0] if len(set(answers)) == 1 else " / ".join(answers))
    return " | ".join(cells)


def _cell(found: Found) -> str:
    if found.allowed:
        return "**yes**"
    return found.why or "no"


def between_marks(page: str) -> str:
    return page.split(BEGIN)[1].split(END)[0]


def main() -> int:
    about = "Try in our, docker's and podman's containers what none should allow, and write docs/security.md."
    argparse.ArgumentParser(prog="security", description=about).parse_args()
    if os.geteuid() != 0:
        print("security: containers and the daemons of docker and podman need root; run it as root", file=sys.stderr)
        return 1
    found, versions = measure()
    if wrong := faults(found):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    text = written(found, versions)
    RESULTS.write_text(text)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{tables(text)}{END}{rest.split(END)[1]}")
    print(f"{len(found['layerstore', 'root'])} things tried in {len(found)} containers: {RESULTS}, {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
