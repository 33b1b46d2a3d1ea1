"""Changes a container's files: the image's own Python runs this file in it, and the extent driver gets it called.

`files` has what is used of `os`, and `open` is as the built-in one: a container of the extent driver has both.
"""

import hashlib
import os
import sys

DIRECTORIES = 100
BYTES = 2048
REWRITTEN = "/usr/share"
"""Every tenth file is one of the image's below this, the others are new."""


def change(files, open, count):  # type: ignore[no-untyped-def]
    """Change `count` files of about 2 KiB, spread over directories; the same ones in every container of an image."""
    old = small_files(files)
    for number in range(count):
        data = hashlib.shake_128(b"%d" % number).digest(BYTES)
        if number % 10 == 0:
            with open(old[number // 10], "r+b") as file:
                file.write(data)
        else:
            directory = f"/srv/{number % DIRECTORIES}"
            files.makedirs(directory, exist_ok=True)
            with open(f"{directory}/{number}", "wb") as file:
                file.write(data)


def small_files(files):  # type: ignore[no-untyped-def]
    """Paths of the image's files of 1 to 4 KiB."""
    paths = (f"{top}/{name}" for top, _, names in files.walk(REWRITTEN) for name in names)
    sizes = ((path, files.lstat(path)) for path in paths)
    return sorted(path for path, status in sizes if status.st_mode >> 12 == 8 and 1024 <= status.st_size <= 4096)


if __name__ == "__main__":
    change(os, open, int(sys.argv[1]))
