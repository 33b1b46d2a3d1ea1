"""The mark of a case of hostile input. `make hostile` counts them and writes them to docs/reliability.md: most are in
tests/hostile, the rest are with the tests of what they are put into."""

import pytest


def case(name: str, done: str, stands_for: str = "") -> pytest.MarkDecorator:
    """Name is what is put in, `done` is "refused" or what else becomes of it, `stands_for` the CVE or bug."""
    return pytest.mark.hostile(name=name, done=done, stands_for=stands_for)
