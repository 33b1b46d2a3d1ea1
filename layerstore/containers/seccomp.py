"""Which system calls a container may make: a list of those allowed, compiled once to the filter that the kernel runs.

The list says what docker's default profile does ("Seccomp security profiles for Docker", docs.docker.com), held against
that of podman and buildah (/usr/share/containers/seccomp.json of containers-common): what either refuses to the default
capabilities is refused here. A refused call is EPERM; one that the list does not know, and clone3, whose flags no
filter can see, are ENOSYS, so that the C library falls back to what there was before.

libseccomp compiles it (seccomp_init(3) and the pages there), which takes 10 ms; so the filter is kept in the store.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cache

from layerstore._core.sha256 import sha256
from layerstore.errors import CorruptError, InvalidInput, LayerstoreError, Unsupported
from layerstore.store.sealed import sealed, unsealed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

# A name with "+x" stands for two calls, the second of which has the ending x: what 32-bit architectures have beside it.
_ALLOWED = """
access chdir chmod chown+32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchown+32 fchownat fcntl+64
fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat+64 fstatat64 fstatfs+64 fsync ftruncate+64 futimesat
getcwd getdents+64 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown+32 lgetxattr link
linkat listxattr llistxattr lremovexattr lseek _llseek lsetxattr lstat+64 mkdir mkdirat mknod mknodat name_to_handle_at
newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readdir readlink
readlinkat readv removexattr rename renameat renameat2 rmdir sendfile+64 setxattr splice stat+64 statfs+64 statx symlink
symlinkat sync sync_file_range syncfs tee truncate+64 umask unlink unlinkat utime
utimensat+_time64 utimes write writev
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
io_cancel io_destroy io_getevents io_setup io_submit pipe pipe2 poll ppoll+_time64 pselect6+_time64 select _newselect
brk madvise memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap msync munlock munlockall
munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
capget capset execve execveat exit exit_group fork get_robust_list get_thread_area
getcpu getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid ioprio_get ioprio_set kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self membarrier pidfd_open pidfd_send_signal
prctl prlimit64 process_mrelease process_vm_readv process_vm_writev ptrace restart_syscall rseq
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval+_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
set_robust_list set_thread_area set_tid_address setpgid setpriority setrlimit setsid sysinfo times ugetrlimit
uname vfork wait4 waitid waitpid
futex+_time64 ipc mq_getsetattr mq_notify mq_open mq_timedreceive+_time64 mq_timedsend+_time64 mq_unlink msgctl msgget
msgrcv msgsnd semctl semget semop semtimedop+_time64 shmat shmctl shmdt shmget
getegid+32 geteuid+32 getgid+32 getgroups+32 getresgid+32 getresuid+32 getuid+32 setfsgid+32 setfsuid+32 setgid+32
setgroups+32 setregid+32 setresgid+32 setresuid+32 setreuid+32 setuid+32
pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait+_time64
rt_tgsigqueueinfo sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend
tgkill tkill
accept accept4 bind connect getpeername getrandom getsockname getsockopt listen recv recvfrom recvmmsg+_time64 recvmsg
send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
adjtimex alarm clock_adjtime+64 clock_getres+_time64 clock_gettime+64 clock_nanosleep+_time64 getitimer gettimeofday
nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime+64 timer_settime+64 timerfd
timerfd_create timerfd_gettime+64 timerfd_settime+64
"""

_OF_ARCHITECTURE = {
    "x86_64": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
}

_WITH_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr "
    "move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 "
    "unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime+64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}

# Known and refused, whatever a container may do; without them here they would be ENOSYS.
_REFUSED = """
_sysctl add_key bdflush create_module get_kernel_syms io_pgetevents+_time64 io_uring_enter io_uring_register
io_uring_setup kexec_file_load kexec_load keyctl migrate_pages move_pages nfsservctl pivot_root query_module request_key
swapoff swapon sysfs uselib userfaultfd ustat vm86 vm86old vmsplice
"""

_PERSONALITIES = (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, Linux32, each with UNAME26; asking
_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW* of clone(2)
# Address families of socket(2): AF_ALG has let programs write to the page cache, which containers share; AF_VSOCK leads
# to other machines. The kernel looks at 32 bits of the argument.
_REFUSED_FAMILIES = (38, 40)
_FAMILIES = range(46)
_INT = 0xFFFFFFFF

# machine -> the architecture, and those that its kernel runs beside it
_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}
_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"

# seccomp.h
_TOKENS = {
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
}
_ACTIONS = {_ALLOW: 0x7FFF0000, _ERRNO: 0x00050000}
_COMPARISONS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
_OPTIMIZE, _BINARY_TREE = 8, 2
_NO_SUCH_CALL = -1
_KERNEL_HAS_IT = "/proc/sys/kernel/seccomp"
LOOSEN = "--security-opt seccomp=unconfined (security_opt) does without"


def _names(text: str) -> Iterator[str]:
    for word in text.split():
        name, *endings = word.split("+")
        yield name
        for ending in endings:
            yield name + ending


def default_profile(capabilities: Collection[str]) -> dict[str, Any]:
    """The profile of a container with these capabilities, as `linux.seccomp` of the OCI runtime specification."""
    allowed = {*_names(_ALLOWED), *_names(_OF_ARCHITECTURE.get(os.uname().machine, ""))}
    refused = set(_names(_REFUSED))
    for capability, text in _WITH_CAPABILITY.items():
        (allowed if capability in capabilities else refused).update(_names(text))
    refused -= allowed | {"clone", "clone3"}
    rules = [_rule(sorted(allowed)), _rule(sorted(refused), errno.EPERM)]
    rules += [_rule(["personality"], None, (0, "SCMP_CMP_EQ", value)) for value in _PERSONALITIES]
    for family in _FAMILIES:
        number = errno.EPERM if family in _REFUSED_FAMILIES else None
        rules += [_rule(["socket"], number, (0, "SCMP_CMP_MASKED_EQ", _INT, family))]
    if "clone" not in allowed:
        rules += [_rule(["clone"], None, (0, "SCMP_CMP_MASKED_EQ", sum(_NAMESPACES), 0))]
        rules += [_rule(["clone"], errno.EPERM, (0, "SCMP_CMP_MASKED_EQ", flag, flag)) for flag in _NAMESPACES]
    profile: dict[str, Any] = {"defaultAction": _ERRNO, "defaultErrnoRet": errno.ENOSYS, "syscalls": rules}
    if architectures := _ARCHITECTURES.get(os.uname().machine):
        profile["architectures"] = architectures
    return profile


def _rule(names: list[str], number: int | None = None, *args: tuple[Any, ...]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": _ALLOW if number is None else _ERRNO}
    if number is not None:
        rule["errnoRet"] = number
    if args:
        rule["args"] = [
            {"index": index, "op": comparison, "value": value, **({"valueTwo": more[0]} if more else {})}
            for index, comparison, value, *more in args
        ]
    return rule


def check_kernel() -> None:
    """Raise `Unsupported` where the kernel has no seccomp."""
    if not os.path.exists(_KERNEL_HAS_IT):
        raise Unsupported(
            f"this kernel cannot restrict the system calls of a container (CONFIG_SECCOMP_FILTER): {LOOSEN}"
        )


@cache
def _library_version() -> str:
    """Which libseccomp is installed, without loading it: its file is named after its version. "" if unknown."""
    multiarch = getattr(sys.implementation, "_multiarch", "")
    for directory in (f"/usr/lib/{multiarch}", "/usr/lib64", "/usr/lib", "/lib64"):
        try:
            return os.readlink(f"{directory}/libseccomp.so.2")
        except OSError:
            continue
    return ""


@cache
def default_filter(capabilities: frozenset[str], directory: str) -> str | None:
    """The default profile as the filter that the kernel runs, in base64, kept in a directory of the store.

    None where there is no libseccomp to compile it. Raises `OSError`.
    """
    import binascii

    profile = repr(default_profile(capabilities))
    key = sha256(f"{profile} {os.uname().machine} {_library_version()}".encode()).hex()
    path = f"{directory}/seccomp-{key[:32]}"
    try:
        with open(path, "rb") as file:
            return unsealed(file.read(), path).decode()
    except (FileNotFoundError, CorruptError):
        pass
    compiled = compile_profile(default_profile(capabilities))
    if compiled is None:
        return None
    from layerstore.store.durable import write_whole

    text = binascii.b2a_base64(compiled, newline=False)
    write_whole(path, sealed(text))
    return text.decode()


def compile_profile(profile: dict[str, Any]) -> bytes | None:
    """A profile of `default_profile` as the program for seccomp(2), an array of struct sock_filter, or None where there
    is no libseccomp. Raises `LayerstoreError` where that refuses it."""
    import ctypes

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    return _Compiler(library).compile(profile)


class _Compiler:
    """libseccomp's C interface, by ctypes."""

    def __init__(self, library: Any) -> None:
        import ctypes

        class Comparison(ctypes.Structure):
            """struct scmp_arg_cmp."""

            _fields_ = (
                ("arg", ctypes.c_uint),
                ("op", ctypes.c_int),
                ("datum_a", ctypes.c_uint64),
                ("datum_b", ctypes.c_uint64),
            )

        context = ctypes.c_void_p
        library.seccomp_init.restype = context
        library.seccomp_init.argtypes = (ctypes.c_uint32,)
        library.seccomp_release.argtypes = (context,)
        library.seccomp_arch_add.argtypes = (context, ctypes.c_uint32)
        library.seccomp_arch_native.restype = ctypes.c_uint32
        library.seccomp_attr_set.argtypes = (context, ctypes.c_int, ctypes.c_uint32)
        library.seccomp_rule_add_array.argtypes = (
            context,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(Comparison),
        )
        library.seccomp_export_bpf.argtypes = (context, ctypes.c_int)
        self._library = library
        self._comparison = Comparison

    def compile(self, profile: dict[str, Any]) -> bytes:
        library = self._library
        context = library.seccomp_init(_ACTIONS[profile["defaultAction"]] | profile["defaultErrnoRet"])
        if not context:
            raise MemoryError("out of memory for a seccomp filter")
        try:
            for architecture in profile.get("architectures", ()):
                token = _TOKENS[architecture]
                if token != library.seccomp_arch_native():
                    self._check(library.seccomp_arch_add(context, token), f"the architecture {architecture}")
            library.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE)  # since 2.5; as a list it is right, too
            for rule in profile["syscalls"]:
                self._add(context, rule)
            return self._export(context)
        finally:
            library.seccomp_release(context)

    def _add(self, context: int, rule: dict[str, Any]) -> None:
        action = _ACTIONS[rule["action"]] | rule.get("errnoRet", 0)
        args = [
            self._comparison(arg["index"], _COMPARISONS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
            for arg in rule.get("args", ())
        ]
        array = (self._comparison * len(args))(*args)
        for name in rule["names"]:
            number = self._library.seccomp_syscall_resolve_name(name.encode())
            if number != _NO_SUCH_CALL:
                self._check(self._library.seccomp_rule_add_array(context, action, number, len(args), array), name)

    def _export(self, context: int) -> bytes:
        fd = os.memfd_create("seccomp")
        try:
            self._check(self._library.seccomp_export_bpf(context, fd), "the filter")
            size = os.lseek(fd, 0, os.SEEK_END)
            return os.pread(fd, size, 0)
        finally:
            os.close(fd)

    @staticmethod
    def _check(result: int, what: str) -> None:
        if result < 0:
            raise LayerstoreError(f"libseccomp refuses {what}: {os.strerror(-result)}; {LOOSEN}")


def read_profile(path: str, capabilities: Collection[str]) -> dict[str, Any]:
    """A profile of the caller's, docker's format or the runtime's, as the latter. Raises `InvalidInput`."""
    import json

    try:
        with open(path, "rb") as file:
            document = json.loads(file.read())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read the seccomp profile {path}: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("defaultAction"), str):
        raise InvalidInput(f'{path} is no seccomp profile: it says no "defaultAction"')
    try:
        return _adapted(document, capabilities)
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path} is no seccomp profile as docker's: {error!r}") from error


_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _adapted(document: dict[str, Any], capabilities: Collection[str]) -> dict[str, Any]:
    machine = os.uname().machine
    fields = ("defaultAction", "defaultErrnoRet", "architectures", "flags")
    profile: dict[str, Any] = {field: document[field] for field in fields if field in document}
    for entry in document.get("archMap") or ():
        if entry["architecture"] in _ARCHITECTURES.get(machine, ())[:1]:
            profile["architectures"] = [entry["architecture"], *(entry.get("subArchitectures") or ())]
    profile["syscalls"] = []
    for rule in document.get("syscalls") or ():
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if not _holds(includes, capabilities, every=True) or _holds(excludes, capabilities, every=False):
            continue
        kept = {field: rule[field] for field in ("action", "errnoRet", "args") if rule.get(field) is not None}
        profile["syscalls"].append({"names": rule.get("names") or [rule["name"]], **kept})
    return profile


def _holds(conditions: dict[str, Any], capabilities: Collection[str], *, every: bool) -> bool:
    """Whether all conditions hold, or one of them does: what docker asks of `includes`, and of `excludes`."""
    answers = []
    if caps := conditions.get("caps"):
        answers.append(all(cap in capabilities for cap in caps) if every else any(cap in capabilities for cap in caps))
    if arches := conditions.get("arches"):
        answers.append(_GO_ARCHITECTURES.get(os.uname().machine) in arches)
    if kernel := conditions.get("minKernel"):
        answers.append(_version(os.uname().release) >= _version(kernel))
    return all(answers) if every else any(answers)


def _version(release: str) -> list[int]:
    import re

    return [int(number) for number in re.findall(r"\d+", release)[:2]]
