"""Control groups of version 2 (csrc/mount/cgroup.h). Descriptors belong to the caller.

A call raises `Unsupported` where the kernel or the privilege is missing, and `OSError` for the rest.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from layerstore._core.status cimport check, ls_error


cdef extern from "mount/cgroup.h" nogil:
    struct ls_device_rule:
        int block
        uint32_t major
        int any_minor
        uint32_t minor
        uint32_t access
    enum:
        LS_DEVICE_MKNOD
        LS_DEVICE_READ
        LS_DEVICE_WRITE
    int ls_cgroup_open(int *fd, ls_error *err)
    int ls_cgroup_allow_devices(int group_fd, const ls_device_rule *rules, size_t n, ls_error *err)


cdef dict ACCESS = {"r": LS_DEVICE_READ, "w": LS_DEVICE_WRITE, "m": LS_DEVICE_MKNOD}


def open_hierarchy() -> int:
    """A descriptor of the root of the hierarchy, mounted where nobody sees it for as long as that is open."""
    cdef ls_error err
    cdef int status, fd = -1
    with nogil:
        status = ls_cgroup_open(&fd, &err)
    check(status, &err)
    return fd


def allow_devices(int group_fd, rules) -> None:
    """Have the programs of a group (its directory) use these devices alone, for as long as the group is there.

    A rule is (kind, major, minor, access): "b" or "c", the numbers (None for minor: every one), and letters of "rwm".
    """
    cdef ls_error err
    cdef int status
    cdef size_t i, count = len(rules)
    cdef ls_device_rule *array = <ls_device_rule *>calloc(count + 1, sizeof(ls_device_rule))
    if array == NULL:
        raise MemoryError(f"out of memory for {count} device rules")
    try:
        for i in range(count):
            kind, major, minor, access = rules[i]
            array[i].block, array[i].major = kind == "b", major
            array[i].any_minor, array[i].minor = minor is None, minor or 0
            array[i].access = sum(ACCESS[letter] for letter in set(access))
        with nogil:
            status = ls_cgroup_allow_devices(group_fd, array, count, &err)
    finally:
        free(array)
    check(status, &err)
