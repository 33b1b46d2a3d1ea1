"""Loop devices and the XFS of a pool (csrc/mount/loop.h, csrc/mount/xfs.h).

Paths are `str`, `bytes` or `os.PathLike`; descriptors belong to the caller. A call raises `Unsupported` where the
privilege, a device or the kernel's XFS is missing, and `OSError` for the rest.
"""

from libc.stdint cimport uint64_t

from layerstore._core.mount cimport c_string
from layerstore._core.status cimport check, ls_error


cdef extern from "mount/loop.h" nogil:
    struct ls_loop:
        int fd
        char path[32]
        int direct_io
    int ls_loop_find(int image_fd, ls_loop *loop, ls_error *err)
    int ls_loop_attach(int image_fd, ls_loop *loop, ls_error *err)
    int ls_loop_resize(const ls_loop *loop, ls_error *err)

cdef extern from "mount/xfs.h" nogil:
    int ls_xfs_mount(const char *device, const char *target, ls_error *err)
    int ls_xfs_grow(int fd, uint64_t size, ls_error *err)
    int ls_trim(int fd, uint64_t *trimmed, ls_error *err)

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)


cdef class Loop:
    """The loop device of a file, held open. `path` is the device's; `direct_io` says whether it has direct I/O."""

    cdef ls_loop loop

    def __cinit__(self):
        self.loop.fd = -1

    def __dealloc__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Let go of it: it goes when it is not mounted and nobody else has it open. Closing twice is fine."""
        if self.loop.fd >= 0:
            c_close(self.loop.fd)
        self.loop.fd = -1

    @property
    def path(self) -> str:
        return self.loop.path.decode()

    @property
    def direct_io(self) -> bool:
        return bool(self.loop.direct_io)

    def resize(self) -> None:
        """Have the device as long as its file is now."""
        cdef ls_error err
        cdef int status
        with nogil:
            status = ls_loop_resize(&self.loop, &err)
        check(status, &err)


def find_loop(int image_fd):
    """The `Loop` that an open file is attached to, or None."""
    cdef ls_error err
    cdef int status
    cdef Loop found = Loop()
    with nogil:
        status = ls_loop_find(image_fd, &found.loop, &err)
    check(status, &err)
    return found if found.loop.fd >= 0 else None


def attach_loop(int image_fd) -> Loop:
    """Attach a file, open for reading and writing, to a free loop device."""
    cdef ls_error err
    cdef int status
    cdef Loop made = Loop()
    with nogil:
        status = ls_loop_attach(image_fd, &made.loop, &err)
    check(status, &err)
    return made


def mount_xfs(device, target) -> None:
    """Mount the XFS on a block device at the directory `target`."""
    cdef ls_error err
    cdef int status
    cdef bytes device_path = c_string(device)
    cdef bytes target_path = c_string(target)
    cdef const char *c_device = device_path
    cdef const char *c_target = target_path
    with nogil:
        status = ls_xfs_mount(c_device, c_target, &err)
    check(status, &err)


def grow_xfs(int fd, uint64_t size_bytes) -> None:
    """Let the mounted XFS of an open directory grow to `size_bytes`. Raises `InvalidInput` when that is less than now."""
    cdef ls_error err
    cdef int status
    with nogil:
        status = ls_xfs_grow(fd, size_bytes, &err)
    check(status, &err)


def trim(int fd) -> int:
    """Tell the device below the file system of an open directory which blocks are free; returns their bytes."""
    cdef ls_error err
    cdef int status
    cdef uint64_t trimmed = 0
    with nogil:
        status = ls_trim(fd, &trimmed, &err)
    check(status, &err)
    return trimmed
