"""Loop devices, the XFS of a pool, and project quotas (csrc/mount/loop.h, csrc/mount/xfs.h, csrc/mount/quota.h).

Paths are `str`, `bytes` or `os.PathLike`; descriptors belong to the caller. A call raises `Unsupported` where the
privilege, a device or the kernel's XFS is missing, and `OSError` for the rest.
"""

from libc.stdint cimport uint32_t, uint64_t

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
    int ls_xfs_mount(const char *device, const char *target, int quotas, ls_error *err)
    int ls_xfs_grow(int fd, uint64_t size, ls_error *err)
    int ls_trim(int fd, uint64_t *trimmed, ls_error *err)

cdef extern from "mount/quota.h" nogil:
    struct ls_project_usage:
        uint64_t limit_bytes
        uint64_t used_bytes
        uint64_t files
    int ls_project_set(int fd, uint32_t project, int inherits, ls_error *err)
    int ls_project_get_usage "ls_project_usage"(int fd, uint32_t project, ls_project_usage *usage, ls_error *err)
    int ls_project_limit(int fd, uint32_t project, uint64_t bytes, ls_error *err)

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


def mount_xfs(device, target, bint quotas=False) -> None:
    """Mount the XFS on a block device at the directory `target`, with project quotas if the kernel has them."""
    cdef ls_error err
    cdef int status
    cdef bytes device_path = c_string(device)
    cdef bytes target_path = c_string(target)
    cdef const char *c_device = device_path
    cdef const char *c_target = target_path
    with nogil:
        status = ls_xfs_mount(c_device, c_target, quotas, &err)
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


def project_set(int fd, uint32_t project, bint inherits) -> None:
    """Give an open file or directory to a project; with `inherits`, what is made in the directory from now on, too."""
    cdef ls_error err
    check(ls_project_set(fd, project, inherits, &err), &err)


def project_usage(int fd, uint32_t project) -> tuple[int, int, int]:
    """What a project may take of the file system of an open file (bytes; 0: no limit), what it takes, in how many files.

    Raises `Unsupported` where that has no project quotas.
    """
    cdef ls_error err
    cdef ls_project_usage usage
    check(ls_project_get_usage(fd, project, &usage, &err), &err)
    return usage.limit_bytes, usage.used_bytes, usage.files


def project_limit(int fd, uint32_t project, uint64_t limit_bytes) -> None:
    """Limit a project, to whole KiB. Raises as `project_usage`."""
    cdef ls_error err
    check(ls_project_limit(fd, project, limit_bytes, &err), &err)
