"""Cloning a directory tree within one file system (csrc/upper/clone_tree.h), and joining several (join_trees.h)."""

from layerstore._core.mount cimport Descriptors, c_string
from layerstore._core.status cimport check, ls_error


cdef extern from "upper/clone_tree.h" nogil:
    int ls_clone_tree(int source_fd, const char *source, int target_fd, const char *target, int *has_copied,
                      ls_error *err)


cdef extern from "upper/join_trees.h" nogil:
    int ls_join_trees(const int *uppers, size_t count, int target_fd, int *has_copied, ls_error *err)


def clone_tree(int source_fd, source, int target_fd, target) -> bool:
    """Clone the directory `source`, relative to the directory descriptor `source_fd`, to `target`, relative to `target_fd`.

    `target` is made, or is an empty directory. Everything comes along: types, owners, modes, times, extended attributes,
    holes, hard links. Contents are shared where the file system has reflink, else copied. The tree may be in use: each
    file is of one moment where it is shared, the tree as a whole is not. Returns whether any content was copied: it is not
    on the disk before it is synced, also where all that was made after it is. Raises `OSError` naming the entry; what was
    made until then stays.
    """
    cdef ls_error err
    cdef int status, has_copied = 0
    cdef bytes from_path = c_string(source)
    cdef bytes to_path = c_string(target)
    cdef const char *c_source = from_path
    cdef const char *c_target = to_path
    with nogil:
        status = ls_clone_tree(source_fd, c_source, target_fd, c_target, &has_copied, &err)
    check(status, &err)
    return bool(has_copied)


def join_trees(uppers, int target_fd) -> bool:
    """Fill the empty directory `target_fd` with what these uppers, descriptors, top first, are together.

    They are on its file system, and nobody changes them. Returns whether something was made that is not on the disk before
    it is synced. Raises `LimitExceeded` for a path of more than 4,096 bytes, `OSError`; what was made until then stays.
    """
    cdef ls_error err
    cdef int status, has_copied = 0
    cdef Descriptors fds = Descriptors(uppers)
    with nogil:
        status = ls_join_trees(fds.array, fds.count, target_fd, &has_copied, &err)
    check(status, &err)
    return bool(has_copied)
