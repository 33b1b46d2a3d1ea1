"""The mount system calls, and starting a program in a mount namespace of its own. The headers of `csrc/mount/` are the manual.

Paths are `str`, `bytes` or `os.PathLike`; descriptors belong to the caller. A call raises `Unsupported` where the
kernel or the privilege is missing, `InvalidInput` for a name that no directory can have, and `OSError` for the rest.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

import os
from collections import namedtuple

from layerstore._core.status cimport check, ls_error

from layerstore._core.status import InvalidInput


cdef extern from "mount/mount.h" nogil:
    struct ls_mount_features:
        int may_mount
        int new_mount_api
        int overlay
        int erofs

    int ls_mount_erofs(const char *image, const char *device, const char *target, ls_error *err)
    int ls_umount(const char *path, int lazy, ls_error *err)
    int ls_is_mounted(const char *path, int *mounted, ls_error *err)
    void ls_mount_features_probe "ls_mount_features"(ls_mount_features *features)
    int ls_syncfs(int fd, ls_error *err)


cdef extern from "mount/network.h" nogil:
    int ls_network_make(int *fd, ls_error *err)


cdef extern from "mount/overlay.h" nogil:
    struct ls_overlay_lowers:
        const int *lower
        size_t lower_count
        const int *data
        size_t data_count

    struct ls_directory_attributes:
        uint32_t mode
        uint32_t uid
        uint32_t gid
        int64_t mtime_seconds
        uint32_t mtime_nanoseconds

    int ls_container_make_many(int containers_fd, const char *const *names, size_t n,
                               const ls_directory_attributes *upper, const char *stack, ls_error *err)
    int ls_overlay_mount_many(int containers_fd, const char *const *names, size_t n,
                              const ls_overlay_lowers *lowers, int volatile_upper, size_t *done, ls_error *err)
    int ls_umount_many(int containers_fd, const char *const *names, size_t n, int lazy, ls_error *err)
    int ls_mounted_many(int containers_fd, const char *const *names, size_t n, uint8_t *mounted, ls_error *err)


cdef extern from "mount/removal.h" nogil:
    int ls_container_remove_many(int containers_fd, const char *const *names, size_t n, ls_error *err)


cdef extern from "mount/inside.h" nogil:
    int ls_open_inside(int root_fd, const char *path, int flags, int links, int *fd, ls_error *err)


cdef extern from "mount/fscontext.h" nogil:
    int ls_mount_detached_read_only(const char *path)


cdef extern from "<sys/inotify.h>" nogil:
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, unsigned int mask)
    int IN_CLOEXEC, IN_NONBLOCK
    unsigned int IN_MODIFY, IN_CREATE, IN_MOVED_TO, IN_DELETE_SELF

cdef extern from "mount/quota.h" nogil:
    int ls_project_of(int fd, uint32_t *project, ls_error *err)


cdef extern from "mount/spawn.h" nogil:
    int LS_SPAWN_FDS
    struct ls_spawn_request "ls_spawn":
        const char *const *argv
        const char *const *envp
        const char *cwd
        const int *fds
        size_t fd_count
        int private_mounts
        const char *const *hide
        int group_fd
        const int *task_fds
        size_t task_fd_count
        int controlling_terminal
        int read_only_program

    int ls_spawn_start "ls_spawn"(const ls_spawn_request *spawn, int *pid, ls_error *err)


class Features(namedtuple("Features", ("may_mount", "new_mount_api", "overlay", "erofs"))):
    """What this process and kernel can do, a bool each; see `features`."""

    __slots__ = ()


cdef bytes c_string(object path):
    """The bytes of a path or argument, without the NUL byte that would cut it short in C."""
    cdef bytes encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise InvalidInput(f"{path!r} holds a NUL byte, which no path or argument of a program may")
    return encoded


cdef class Strings:
    """A NULL-terminated C array of strings, alive as long as this object."""

    cdef list kept
    cdef const char **array
    cdef size_t count

    def __cinit__(self, strings):
        cdef size_t i
        cdef bytes kept
        self.kept = [c_string(string) for string in strings]
        self.count = len(self.kept)
        self.array = <const char **>calloc(self.count + 1, sizeof(char *))
        if self.array == NULL:
            raise MemoryError(f"out of memory for {self.count} strings")
        for i in range(self.count):
            kept = self.kept[i]
            self.array[i] = kept

    def __dealloc__(self):
        free(self.array)


cdef class Descriptors:
    """A C array of file descriptors, alive as long as this object."""

    def __cinit__(self, descriptors):
        cdef size_t i
        self.count = len(descriptors)
        self.array = <int *>malloc((self.count + 1) * sizeof(int))
        if self.array == NULL:
            raise MemoryError(f"out of memory for {self.count} descriptors")
        for i in range(self.count):
            self.array[i] = descriptors[i]

    def __dealloc__(self):
        free(self.array)


def mount_erofs(image, device, target) -> None:
    """Mount the EROFS image file read-only on the directory `target`, with `device` (or None) as its extra device.

    Raises `CorruptError` when the file is no EROFS image, and `Unsupported` when it is on a file system from which
    EROFS cannot be mounted (it must be ext4, XFS or btrfs, and Linux 6.12 or newer).
    """
    cdef ls_error err
    cdef int status
    cdef bytes image_path = c_string(image)
    cdef bytes device_path = b"" if device is None else c_string(device)
    cdef bytes target_path = c_string(target)
    cdef const char *c_image = image_path
    cdef const char *c_device = device_path
    cdef const char *c_target = target_path
    if device is None:
        c_device = NULL
    with nogil:
        status = ls_mount_erofs(c_image, c_device, c_target, &err)
    check(status, &err)


def container_make_many(
    int containers_fd, names, uint32_t mode, uint32_t uid, uint32_t gid, mtime_ns, stack=None
) -> None:
    """Make `name`/{upper,work,root} below the directory `containers_fd` for each name; all or nothing.

    `stack`: a link of another one's, relative to that directory, that each gets as `name`/lower (csrc/mount/overlay.h).

    Each `upper` gets the permission bits, owner and modification time (nanoseconds since 1970) given: an overlay
    shows its upper's own attributes at its root.
    """
    cdef ls_error err
    cdef int status
    cdef Strings strings = Strings(names)
    cdef ls_directory_attributes upper
    cdef bytes stack_path = b"" if stack is None else c_string(stack)
    cdef const char *c_stack = NULL
    if stack is not None:
        c_stack = stack_path
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    upper.mode, upper.uid, upper.gid = mode, uid, gid
    upper.mtime_seconds, upper.mtime_nanoseconds = seconds, nanoseconds
    with nogil:
        status = ls_container_make_many(containers_fd, strings.array, strings.count, &upper, c_stack, &err)
    check(status, &err)


def container_remove_many(int containers_fd, names) -> None:
    """Remove `name` and everything below it for each name; one that does not exist is fine.

    Links are not followed and no mount is entered: a container that is still mounted is an `OSError` (EBUSY), and
    nothing of it is touched. The others are removed all the same.
    """
    cdef ls_error err
    cdef int status
    cdef Strings strings = Strings(names)
    with nogil:
        status = ls_container_remove_many(containers_fd, strings.array, strings.count, &err)
    check(status, &err)


def overlay_mount_many(int containers_fd, names, lower, data, bint volatile_upper=False) -> int:
    """Mount an overlay on `name`/root for each name and return how many names that is.

    `lower` (top first) and `data` (data-only layers) are directory descriptors. A name that is mounted already is
    passed over. Stops at the first error; what was mounted until then stays, as `mounted_many` tells. With
    `volatile_upper` nothing written is ever synced (overlayfs.rst, "Volatile mount").
    """
    cdef ls_error err
    cdef int status
    cdef size_t done = 0
    cdef Strings strings = Strings(names)
    cdef Descriptors lower_fds = Descriptors(lower)
    cdef Descriptors data_fds = Descriptors(data)
    cdef ls_overlay_lowers lowers
    lowers.lower, lowers.lower_count = lower_fds.array, lower_fds.count
    lowers.data, lowers.data_count = data_fds.array, data_fds.count
    with nogil:
        status = ls_overlay_mount_many(containers_fd, strings.array, strings.count, &lowers, volatile_upper, &done,
                                       &err)
    check(status, &err)
    return done


def umount_many(int containers_fd, names, bint lazy=False) -> None:
    """Unmount `name`/root for each name; one that is not mounted is fine.

    A busy one is an `OSError` (EBUSY) unless `lazy`, which detaches it; the others are unmounted all the same.
    """
    cdef ls_error err
    cdef int status
    cdef Strings strings = Strings(names)
    with nogil:
        status = ls_umount_many(containers_fd, strings.array, strings.count, lazy, &err)
    check(status, &err)


def mounted_many(int containers_fd, names) -> list:
    """For each name whether `name`/root is a mount point; False also where it does not exist."""
    cdef ls_error err
    cdef int status
    cdef Strings strings = Strings(names)
    cdef bytearray mounted = bytearray(strings.count)
    cdef uint8_t *c_mounted = mounted
    with nogil:
        status = ls_mounted_many(containers_fd, strings.array, strings.count, c_mounted, &err)
    check(status, &err)
    return [bool(one) for one in mounted]


def umount(path, bint lazy=False) -> None:
    """Unmount what is mounted on `path`; nothing there is fine. Busy is an `OSError` (EBUSY) unless `lazy`."""
    cdef ls_error err
    cdef int status
    cdef bytes encoded = c_string(path)
    cdef const char *c_path = encoded
    with nogil:
        status = ls_umount(c_path, lazy, &err)
    check(status, &err)


def is_mounted(path) -> bool:
    """Whether `path` is a mount point; False also where it does not exist."""
    cdef ls_error err
    cdef int status, mounted = 0
    cdef bytes encoded = c_string(path)
    cdef const char *c_path = encoded
    with nogil:
        status = ls_is_mounted(c_path, &mounted, &err)
    check(status, &err)
    return bool(mounted)


def features() -> Features:
    """What this process and kernel can do, probed for real: no version numbers are compared."""
    cdef ls_mount_features found
    with nogil:
        ls_mount_features_probe(&found)
    return Features(bool(found.may_mount), bool(found.new_mount_api), bool(found.overlay), bool(found.erofs))


def syncfs(int fd) -> None:
    """Make all of the file system that holds the descriptor durable (syncfs(2))."""
    cdef ls_error err
    cdef int status
    with nogil:
        status = ls_syncfs(fd, &err)
    check(status, &err)


def open_inside(int root_fd, path, int flags, bint links=True) -> int:
    """Open an existing path as if the directory `root_fd` were the root: no link and no ".." leads out of it.

    `flags` as for `os.open`; the descriptor returned is the caller's to close. Without `links` a symbolic link on the
    way is an `OSError` (ELOOP); O_PATH with O_NOFOLLOW still opens the one that the path itself is.
    """
    cdef ls_error err
    cdef int status, fd = -1
    cdef bytes encoded = c_string(path)
    cdef const char *c_path = encoded
    with nogil:
        status = ls_open_inside(root_fd, c_path, flags, links, &fd, &err)
    check(status, &err)
    return fd


def network_make() -> int:
    """A descriptor of a new network namespace, which lasts as long as that or a process in it; the caller's to close.

    Raises `Unsupported` without the privilege, `OSError`.
    """
    cdef ls_error err
    cdef int status, fd = -1
    with nogil:
        status = ls_network_make(&fd, &err)
    check(status, &err)
    return fd


def spawn(argv, env=None, cwd=None, fds=(0, 1, 2), bint private_mounts=False,
          hide=(), bint controlling_terminal=False, bint read_only_program=False, int group_fd=-1, task_fds=()) -> int:
    """Start the program at the path argv[0] and return its process id, to be waited for by the caller.

    This process is not copied (vfork semantics). `env` None is this process's environment; `fds` become descriptors
    0, 1, 2 and so on, -1 being none; every other one must be close-on-exec, as Python's are. `private_mounts` gives it a mount namespace of its own,
    where an empty tmpfs covers each directory in `hide` that exists. It starts in the control group of version 2 with the
    directory `group_fd`, if one is given, and in those of version 1 whose files "tasks" are `task_fds`. `controlling_terminal` makes it lead a session
    on the terminal that is its descriptor 0. `read_only_program` executes it through a read-only mount of its file, where
    that can be had, so that nobody can write to it through /proc/PID/exe. Raises `OSError` with the path when the
    program cannot be executed; no process is left then.
    """
    cdef ls_error err
    cdef int status, pid = -1
    cdef ls_spawn_request request
    cdef Strings arguments = Strings(argv)
    cdef Strings environment
    cdef Strings hidden = Strings(hide)
    cdef Descriptors tasks = Descriptors(task_fds)
    cdef Descriptors placed = Descriptors(fds)
    cdef bytes directory = b"" if cwd is None else c_string(cwd)
    if not 3 <= placed.count <= LS_SPAWN_FDS:
        raise InvalidInput(f"a program gets 3 to {LS_SPAWN_FDS} descriptors, not {placed.count}")
    if not arguments.count:
        raise InvalidInput("a program to start needs at least its own path as an argument")
    pairs = os.environb if env is None else env
    environment = Strings([os.fsencode(name) + b"=" + os.fsencode(value) for name, value in pairs.items()])
    request.argv, request.envp, request.hide = arguments.array, environment.array, hidden.array
    request.group_fd = group_fd
    request.task_fds, request.task_fd_count = tasks.array, tasks.count
    request.cwd = NULL
    if cwd is not None:
        request.cwd = directory
    request.fds, request.fd_count = placed.array, placed.count
    request.private_mounts, request.controlling_terminal = private_mounts, controlling_terminal
    request.read_only_program = read_only_program
    with nogil:
        status = ls_spawn_start(&request, &pid, &err)
    check(status, &err)
    return pid


def open_read_only(path) -> int:
    """A descriptor of a program by which it can be executed as from a read-only mount (Linux 5.12); -1 where that is not
    to be had."""
    cdef bytes name = c_string(path)
    cdef const char *c_name = name
    cdef int fd
    with nogil:
        fd = ls_mount_detached_read_only(c_name)
    return fd


def watch(path) -> int:
    """A descriptor that can be read, without waiting, after a file, or one of a directory, was written to, made or put
    into place (inotify(7)). It belongs to the caller. Raises `OSError`."""
    cdef bytes name = c_string(path)
    cdef int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), "inotify")
    if inotify_add_watch(fd, name, IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF) < 0:
        error = OSError(errno, os.strerror(errno), os.fsdecode(name))
        os.close(fd)
        raise error
    return fd


def project_of(int fd) -> int:
    """The project of an open file or directory, by which its blocks are counted (csrc/mount/quota.h); 0 for none."""
    cdef ls_error err
    cdef uint32_t project = 0
    check(ls_project_of(fd, &project, &err), &err)
    return project
