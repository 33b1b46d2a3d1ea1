"""SHA-256 against the vectors of FIPS 180-4's examples and against OpenSSL's."""

import hashlib
import random

import pytest

from layerstore._core.sha256 import sha256


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
    ],
)
def test_the_published_examples(data: bytes, digest: str) -> None:
    assert sha256(data).hex() == digest


def test_every_length_around_the_blocks() -> None:
    data = random.Random(1).randbytes(70_000)
    for length in (*range(200), 4095, 4096, 4097, len(data)):
        assert sha256(data[:length]) == hashlib.sha256(data[:length]).digest()


def test_only_bytes() -> None:
    with pytest.raises(TypeError):
        sha256("text")  # type: ignore[arg-type]
