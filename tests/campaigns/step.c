/* Runs a program up to one of its system calls, and kills it there: `step WHEN NUMBER WHOM LOG COMMAND...`

Counted are system calls that change what outlives a process: files, directories, attributes, locks, mounts, what is made
durable. They are counted over all threads and children in the order in which they are made. At the NUMBERth, WHEN it
is to be made ("before") or has been ("after"), SIGKILL is sent to WHOM: "all" processes of the tree at once, or "one",
the first, whose children go on. With NUMBER 0 nothing is killed.

LOG gets a line for each call: its number, the thread's, its name, and the path or file descriptor that it is about; then
"killed", or "ended" with the wait status of the first process. It is the program as it is, without a library
preloaded: the kernel stops it by a seccomp filter at these calls alone (seccomp(2), ptrace(2)), so it is about as fast as
ever. Exits with 0 once all processes that it counted for have ended, with 2 when it could not do so. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* What is counted. `path` is the argument that is a path, NO_PATH where the first is a descriptor. `flags` is the one that
has to have one of the flags that make or empty a file, or is an ioctl's request, NO_FLAGS where any call counts. */
enum { NO_PATH = -1, NO_FLAGS = -1, MAX_TASKS = 4096, PATH_BYTES = 4096 };

struct call {
	int number;
	const char *name;
	int path, flags;
};

#define CALL(name, path, flags)                                                                                        \
	{                                                                                                              \
		SYS_##name, #name, path, flags                                                                         \
	}

static const struct call CALLS[] = {
#ifdef SYS_open /* what newer architectures have only in the form with "at" */
    CALL(open, 0, 1),
    CALL(creat, 0, NO_FLAGS),
    CALL(rename, 0, NO_FLAGS),
    CALL(link, 0, NO_FLAGS),
    CALL(unlink, 0, NO_FLAGS),
    CALL(mkdir, 0, NO_FLAGS),
    CALL(rmdir, 0, NO_FLAGS),
    CALL(symlink, 1, NO_FLAGS),
    CALL(mknod, 0, NO_FLAGS),
    CALL(chmod, 0, NO_FLAGS),
    CALL(chown, 0, NO_FLAGS),
    CALL(lchown, 0, NO_FLAGS),
    CALL(utime, 0, NO_FLAGS),
    CALL(utimes, 0, NO_FLAGS),
    CALL(futimesat, 1, NO_FLAGS),
#endif
#ifdef SYS_renameat
    CALL(renameat, 1, NO_FLAGS),
#endif
    CALL(openat, 1, 2),
    CALL(openat2, 1, NO_FLAGS),
    CALL(write, NO_PATH, NO_FLAGS),
    CALL(pwrite64, NO_PATH, NO_FLAGS),
    CALL(writev, NO_PATH, NO_FLAGS),
    CALL(pwritev, NO_PATH, NO_FLAGS),
    CALL(pwritev2, NO_PATH, NO_FLAGS),
    CALL(sendfile, NO_PATH, NO_FLAGS),
    CALL(splice, NO_PATH, NO_FLAGS),
    CALL(copy_file_range, NO_PATH, NO_FLAGS),
    CALL(ioctl, NO_PATH, 1),
    CALL(truncate, 0, NO_FLAGS),
    CALL(ftruncate, NO_PATH, NO_FLAGS),
    CALL(fallocate, NO_PATH, NO_FLAGS),
    CALL(renameat2, 1, NO_FLAGS),
    CALL(linkat, 1, NO_FLAGS),
    CALL(unlinkat, 1, NO_FLAGS),
    CALL(mkdirat, 1, NO_FLAGS),
    CALL(symlinkat, 2, NO_FLAGS),
    CALL(mknodat, 1, NO_FLAGS),
    CALL(fsync, NO_PATH, NO_FLAGS),
    CALL(fdatasync, NO_PATH, NO_FLAGS),
    CALL(syncfs, NO_PATH, NO_FLAGS),
    CALL(sync, NO_PATH, NO_FLAGS),
    CALL(sync_file_range, NO_PATH, NO_FLAGS),
    CALL(fchmod, NO_PATH, NO_FLAGS),
    CALL(fchmodat, 1, NO_FLAGS),
    CALL(fchown, NO_PATH, NO_FLAGS),
    CALL(fchownat, 1, NO_FLAGS),
    CALL(utimensat, 1, NO_FLAGS),
    CALL(setxattr, 0, NO_FLAGS),
    CALL(lsetxattr, 0, NO_FLAGS),
    CALL(fsetxattr, NO_PATH, NO_FLAGS),
    CALL(removexattr, 0, NO_FLAGS),
    CALL(lremovexattr, 0, NO_FLAGS),
    CALL(fremovexattr, NO_PATH, NO_FLAGS),
    CALL(flock, NO_PATH, NO_FLAGS),
    CALL(mount, 1, NO_FLAGS),
    CALL(umount2, 0, NO_FLAGS),
    CALL(pivot_root, 0, NO_FLAGS),
    CALL(fsopen, 0, NO_FLAGS),
    CALL(fsconfig, NO_PATH, NO_FLAGS),
    CALL(fsmount, NO_PATH, NO_FLAGS),
    CALL(move_mount, NO_PATH, NO_FLAGS),
    CALL(open_tree, 1, NO_FLAGS),
    CALL(mount_setattr, 1, NO_FLAGS),
};
enum { CALL_COUNT = sizeof CALLS / sizeof *CALLS };

/* Of fs.h, loop.h and XFS: FICLONE and its like, attributes of files, FITRIM, loop devices. Terminals' are not. */
static const unsigned char REQUEST_TYPES[] = {0x94, 'f', 'X', 'L'};

enum { MADE_OR_EMPTIED = O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY) };

#if defined(__x86_64__)
enum { ARCHITECTURE = AUDIT_ARCH_X86_64 };
#elif defined(__aarch64__)
enum { ARCHITECTURE = AUDIT_ARCH_AARCH64 };
#endif

static FILE *log_file;
static pid_t tasks[MAX_TASKS], first_process;
static int task_count;

static void fail(const char *what)
{
	fprintf(stderr, "step: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* The filter */

struct program {
	struct sock_filter code[1024];
	unsigned short length;
};

static void emit(struct program *program, struct sock_filter instruction)
{
	program->code[program->length++] = instruction;
}

static void emit_argument(struct program *program, int argument)
{
	unsigned at = offsetof(struct seccomp_data, args) + 8 * (unsigned)argument;
	emit(program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at));
}

/* A call is compared with by its number; what of it counts is a block of its own, which ends in a return. */
static void emit_call(struct program *program, const struct call *call)
{
	struct program block = {0};
	if (call->number == SYS_ioctl) {
		emit_argument(&block, call->flags);
		emit(&block, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_RSH | BPF_K, 8));
		emit(&block, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff));
		for (size_t i = 0; i < sizeof REQUEST_TYPES; i++) {
			emit(&block, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, REQUEST_TYPES[i], 0, 1));
			emit(&block, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE));
		}
		emit(&block, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	} else if (call->flags != NO_FLAGS) {
		emit_argument(&block, call->flags);
		emit(&block, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MADE_OR_EMPTIED, 0, 1));
		emit(&block, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE));
		emit(&block, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	} else {
		emit(&block, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE));
	}
	unsigned char skip = (unsigned char)block.length;
	emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call->number, 0, skip));
	for (int i = 0; i < block.length; i++)
		emit(program, block.code[i]);
}

static void install_filter(void)
{
	static struct program program;
	emit(&program,
	     (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, arch)));
	emit(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)ARCHITECTURE, 1, 0));
	emit(&program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	emit(&program,
	     (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, nr)));
	for (int i = 0; i < CALL_COUNT; i++)
		emit_call(&program, &CALLS[i]);
	emit(&program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	struct sock_fprog filter = {program.length, program.code};
	if (geteuid() != 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		fail("no_new_privs");
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
		fail("seccomp");
}

/* Telling */

static const char *path_of(pid_t task, const struct call *call, const uint64_t *arguments)
{
	static char path[PATH_BYTES];
	ssize_t count;
	if (call->path == NO_PATH) {
		char link[64];
		snprintf(link, sizeof link, "/proc/%d/fd/%d", task, (int)arguments[0]);
		count = readlink(link, path, sizeof path - 1);
	} else {
		struct iovec here = {path, sizeof path - 1};
		struct iovec there = {(void *)(uintptr_t)arguments[call->path], sizeof path - 1};
		count = process_vm_readv(task, &here, 1, &there, 1, 0);
		if (count < 0) { /* it ends before a page that is not there */
			here.iov_len = there.iov_len = PATH_BYTES - (arguments[call->path] & (PATH_BYTES - 1));
			if (here.iov_len > sizeof path - 1)
				here.iov_len = sizeof path - 1;
			count = process_vm_readv(task, &here, 1, &there, 1, 0);
		}
	}
	path[count < 0 ? 0 : count] = '\0';
	for (char *at = path; *at != '\0'; at++)
		if (*at == '\n')
			*at = ' ';
	return path;
}

static void tell_call(pid_t task, long number)
{
	struct __ptrace_syscall_info info;
	if (ptrace(PTRACE_GET_SYSCALL_INFO, task, sizeof info, &info) <= 0)
		return; /* it was killed */
	for (int i = 0; i < CALL_COUNT; i++)
		if ((uint64_t)CALLS[i].number == info.seccomp.nr)
			fprintf(log_file, "%ld %d %s %s\n", number, task, CALLS[i].name,
			        path_of(task, &CALLS[i], info.seccomp.args));
}

/* Running */

static void add_task(pid_t task)
{
	for (int i = 0; i < task_count; i++)
		if (tasks[i] == task)
			return;
	if (task_count < MAX_TASKS)
		tasks[task_count++] = task;
}

static void remove_task(pid_t task)
{
	for (int i = 0; i < task_count; i++)
		if (tasks[i] == task)
			tasks[i] = tasks[--task_count];
}

static void kill_all(void)
{
	for (int i = 0; i < task_count; i++)
		kill(tasks[i], SIGKILL);
}

static void start(char **command)
{
	int go[2];
	if (pipe2(go, O_CLOEXEC) != 0)
		fail("pipe");
	first_process = fork();
	if (first_process < 0)
		fail("fork");
	if (first_process == 0) {
		char byte;
		if (read(go[0], &byte, 1) != 1)
			_exit(2);
		install_filter();
		execvp(command[0], command);
		fail(command[0]);
	}
	int options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
	              PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
	if (ptrace(PTRACE_SEIZE, first_process, 0, options) != 0)
		fail("ptrace");
	add_task(first_process);
	if (write(go[1], "", 1) != 1)
		fail("pipe");
	close(go[0]);
	close(go[1]);
}

int main(int argc, char **argv)
{
	if (argc < 6) {
		fprintf(stderr, "usage: step before|after NUMBER all|one LOG COMMAND...\n");
		return 2;
	}
	bool after = strcmp(argv[1], "after") == 0, all = strcmp(argv[3], "all") == 0, is_killed = false;
	long number = atol(argv[2]), count = 0;
	log_file = fopen(argv[4], "we");
	if (log_file == NULL)
		fail(argv[4]);
	start(argv + 5);

	for (;;) {
		int status;
		pid_t task = waitpid(-1, &status, __WALL);
		if (task < 0 && errno == EINTR)
			continue;
		if (task < 0)
			return 0; /* none is left */
		if (!WIFSTOPPED(status)) {
			remove_task(task);
			if (task == first_process) {
				fprintf(log_file, is_killed ? "killed\n" : "ended %d\n", status);
				fflush(log_file);
			}
			continue;
		}
		add_task(task);
		if (is_killed && all) {
			kill(task, SIGKILL);
			continue;
		}
		int event = status >> 16, signal = WSTOPSIG(status);
		bool is_there = false;
		if (event == PTRACE_EVENT_SECCOMP && !is_killed) {
			tell_call(task, ++count);
			if (count == number && after) {
				ptrace(PTRACE_SYSCALL, task, 0, 0);
				continue;
			}
			is_there = count == number;
		} else if (signal == (SIGTRAP | 0x80)) {
			is_there = !is_killed; /* only the call that is waited for is followed to its end */
		}
		if (is_there) {
			is_killed = true;
			if (all)
				kill_all();
			else
				kill(first_process, SIGKILL);
		}
		if (event == PTRACE_EVENT_STOP && signal != SIGTRAP)
			ptrace(PTRACE_LISTEN, task, 0, 0);
		else
			ptrace(PTRACE_CONT, task, 0, event == 0 && signal != (SIGTRAP | 0x80) ? signal : 0);
	}
}
