"""What programs in containers do to get at what is not theirs."""

import io
import os
from pathlib import Path

import pytest
from cases import case
from hostile import Place
from images import docker_files, tar_of
from test_containers import BOX, runs

pytestmark = [pytest.mark.root, pytest.mark.kernel, runs]

ATTEMPTS = """
(echo evil >/proc/self/fd/0
busybox truncate -s 0 /proc/self/fd/0 /proc/self/fd/1
: >/proc/self/fd/1
busybox chmod 4777 /proc/self/fd/0 /proc/self/fd/1) 2>/dev/null
busybox timeout 0.2 cat /proc/1/fd/1 >/read
echo told
"""


@pytest.mark.parametrize(
    "is_left",
    [
        pytest.param(
            False, id="run", marks=case("a program that opens its input and output again", "gets its own pipes")
        ),
        pytest.param(True, id="start", marks=case("the same, left running", "gets its own pipe")),
    ],
)
@pytest.mark.parametrize("user", ["0", "1000"])
def test_input_and_output_opened_again(place: Place, is_left: bool, user: str) -> None:
    place.store.load(io.BytesIO(tar_of(docker_files([BOX]))))
    given, out = place.cwd / "given", place.cwd / "out"
    given.write_text("secret\n")
    out.write_text("before\n")
    owners = [(os.stat(path).st_uid, os.stat(path).st_mode) for path in (given, out)]
    container = place.store.create("box:1")
    with container.mount() as root, given.open("rb") as stdin, out.open("ab") as stdout:
        Path(root, "read").touch()
        Path(root, "read").chmod(0o666)
        if is_left:
            container.start(["sh", "-c", ATTEMPTS], user=user)
            assert container.wait(60) == 0
            assert b"".join(piece.data for piece in container.logs()) == b"told\n"
        else:
            assert container.run(["sh", "-c", ATTEMPTS], user=user, stdin=stdin, stdout=stdout) == 0
        assert "before" not in Path(root, "read").read_text()
    assert [(os.stat(path).st_uid, os.stat(path).st_mode) for path in (given, out)] == owners
    assert (given.read_text(), out.read_text()) == ("secret\n", "before\n" if is_left else "before\ntold\n")
    container.remove()
    given.unlink()
    out.unlink()
    place.drop("box:1")
    place.changed()
