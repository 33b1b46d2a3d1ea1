// Makes system calls of a process fail: a supervisor by seccomp(2) and ptrace(2), for tests/campaigns/injection.py.
//
// A child calls `injector_enter` once it is traced; from then on the kernel stops it, its threads and its children at each
// call of the table below, and at no other. `injector_supervise` counts those that are made between two marks, over all of
// them, and has one of them fail, or all from one on, as the kernel would have it: a call that fails is not made, a short
// one is made with half of what was asked for. What another program does that a child became by execve(2) is not counted.
//
// Only for x86-64.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLS = 512, TASKS = 256, TEXT = 512, MARK = 0x6c617965 };
enum how { FAIL = 0, FAIL_AFTER = 1, SHORT = 2 };

// What a case is. Of `calls` (a byte for each number), the `at`th, from 1, or none for 0. Nothing fails where the kernel
// could not answer that call so.
struct injector_fault {
	uint8_t calls[CALLS];
	uint32_t at;
	int32_t how;
	int32_t error;
	int32_t persistent; // every later one too
};

struct injector_outcome {
	int32_t status; // of the child, as wait(2) has it
	int32_t hung;
	int32_t left;      // processes that were there when it had ended, and were killed
	uint32_t injected; // how many calls failed
	uint32_t counted[CALLS];
	char text[TEXT]; // the first call that failed
};

// What a call is about. P: a path. D: a descriptor of a directory, a path. F: a descriptor. N: neither.
#define P(name)                                                                                                        \
	{                                                                                                              \
		SYS_##name, #name, 'P'                                                                                 \
	}
#define D(name)                                                                                                        \
	{                                                                                                              \
		SYS_##name, #name, 'D'                                                                                 \
	}
#define F(name)                                                                                                        \
	{                                                                                                              \
		SYS_##name, #name, 'F'                                                                                 \
	}
#define N(name)                                                                                                        \
	{                                                                                                              \
		SYS_##name, #name, 'N'                                                                                 \
	}
static const struct call {
	int number;
	const char *name;
	char kind;
} TABLE_OF_CALLS[] = {P(creat),         D(linkat),
                      P(listxattr),     N(socket),
                      F(read),          F(pread64),
                      F(readv),         F(preadv),
                      F(preadv2),       F(write),
                      F(pwrite64),      F(writev),
                      F(pwritev),       F(pwritev2),
                      P(open),          D(openat),
                      D(openat2),       F(close),
                      F(fsync),         F(fdatasync),
                      F(syncfs),        F(sync_file_range),
                      N(msync),         P(rename),
                      D(renameat),      D(renameat2),
                      P(link),          P(symlink),
                      P(symlinkat),     P(mkdir),
                      D(mkdirat),       P(mknod),
                      D(mknodat),       P(unlink),
                      D(unlinkat),      P(rmdir),
                      P(stat),          P(lstat),
                      F(fstat),         D(newfstatat),
                      D(statx),         P(access),
                      D(faccessat),     D(faccessat2),
                      P(readlink),      D(readlinkat),
                      F(getdents64),    N(mmap),
                      N(mremap),        N(clone),
                      N(clone3),        N(fork),
                      N(vfork),         F(flock),
                      F(fallocate),     F(ftruncate),
                      P(truncate),      N(mount),
                      P(umount2),       P(fsopen),
                      F(fsconfig),      F(fsmount),
                      D(open_tree),     D(move_mount),
                      D(mount_setattr), F(ioctl),
                      P(setxattr),      P(lsetxattr),
                      F(fsetxattr),     P(getxattr),
                      P(lgetxattr),     F(fgetxattr),
                      P(llistxattr),    F(flistxattr),
                      P(removexattr),   P(lremovexattr),
                      F(fremovexattr),  P(chmod),
                      F(fchmod),        D(fchmodat),
                      P(chown),         P(lchown),
                      F(fchown),        D(fchownat),
                      D(utimensat),     F(copy_file_range),
                      F(sendfile),      F(dup),
                      F(dup2),          F(dup3),
                      N(pipe),          N(pipe2),
                      F(fcntl),         P(statfs),
                      F(fstatfs),       P(execve),
                      N(wait4),         N(waitid),
                      N(unshare),       F(setns),
                      P(chdir),         F(fchdir),
                      P(chroot),        F(connect),
                      F(sendto),        F(recvfrom),
                      N(poll),          N(getrandom),
                      N(memfd_create),  N(epoll_create1),
                      N(eventfd2)};
enum { ROWS = sizeof TABLE_OF_CALLS / sizeof *TABLE_OF_CALLS };

static const struct call *call_of(int number)
{
	for (int i = 0; i < ROWS; i++)
		if (TABLE_OF_CALLS[i].number == number)
			return &TABLE_OF_CALLS[i];
	return NULL;
}

// The number of a call, or -1 where it is not in the table.
__attribute__((visibility("default"))) int injector_number(const char *name)
{
	for (int i = 0; i < ROWS; i++)
		if (!strcmp(TABLE_OF_CALLS[i].name, name))
			return TABLE_OF_CALLS[i].number;
	return -1;
}

// In the child, once it is traced: have those of the table told that are in `calls`, a byte for each number, or all where
// it is NULL. Returns 0, or -1 with errno.
__attribute__((visibility("default"))) int injector_enter(const uint8_t *calls)
{
	struct sock_filter filter[2 * ROWS + 8];
	int n = 0;

	filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < ROWS; i++) {
		if (calls && !calls[TABLE_OF_CALLS[i].number])
			continue;
		filter[n++] =
		    (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)TABLE_OF_CALLS[i].number, 0, 1);
		filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
	}
	filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 2);
	filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]));
	filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MARK, 1, 0);
	filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
	struct sock_fprog program = {.len = (unsigned short)n, .filter = filter};
	if (geteuid() != 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

// In the child: calls are counted from now on, or not any more.
__attribute__((visibility("default"))) void injector_mark(int on)
{
	syscall(SYS_prctl, MARK, on, 0, 0, 0);
}

struct task {
	pid_t id;     // 0: free
	bool foreign; // another program
	// What is done where the call that it is in returns.
	bool pending;
	struct user_regs_struct before;
	int error; // reported instead of what it returned; 0: none
};

struct state {
	const struct injector_fault *fault;
	struct injector_outcome *outcome;
	struct task tasks[TASKS];
	bool counting;
	uint32_t met;
	FILE *log;
};

static volatile sig_atomic_t late;
static void on_alarm(int number)
{
	(void)number;
	late = 1;
}

static struct task *task_of(struct state *s, pid_t id)
{
	struct task *free_one = NULL;
	for (int i = 0; i < TASKS; i++) {
		if (s->tasks[i].id == id)
			return &s->tasks[i];
		if (!s->tasks[i].id && !free_one)
			free_one = &s->tasks[i];
	}
	if (!free_one)
		abort();
	*free_one = (struct task){.id = id};
	return free_one;
}

static bool any_left(const struct state *s)
{
	for (int i = 0; i < TASKS; i++)
		if (s->tasks[i].id)
			return true;
	return false;
}

static bool peek(pid_t id, uint64_t address, void *to, size_t length)
{
	struct iovec here = {to, length}, there = {(void *)address, length}; // NOLINT
	return process_vm_readv(id, &here, 1, &there, 1, 0) == (ssize_t)length;
}

static void peek_string(pid_t id, uint64_t address, char *to, size_t room)
{
	size_t n = 0;
	while (n + 1 < room && peek(id, address + n, to + n, 1) && to[n])
		n++;
	to[n] = 0;
}

// A call as strace would show it, but for what is told of its arguments.
static void describe(pid_t id, const struct user_regs_struct *regs, uint32_t nth, char *text)
{
	const struct call *call = call_of((int)regs->orig_rax);
	char path[300] = "", name[64], target[200] = "";
	if (call->kind == 'P')
		peek_string(id, regs->rdi, path, sizeof path);
	if (call->kind == 'D')
		peek_string(id, regs->rsi, path, sizeof path);
	if ((call->kind == 'F' || (call->kind == 'D' && path[0] != '/')) && (int)regs->rdi >= 0) {
		snprintf(name, sizeof name, "/proc/%d/fd/%d", id, (int)regs->rdi);
		ssize_t n = readlink(name, target, sizeof target - 1);
		target[n > 0 ? n : 0] = 0;
	}
	snprintf(text, TEXT, "%s #%u (%d: %s%s%s, %#llx, %#llx)", call->name, nth, (int)regs->rdi, target,
	         *target && *path ? "/" : "", path, regs->rsi, regs->rdx);
}

static bool halve(unsigned long long *count)
{
	if (*count < 2)
		return false;
	*count /= 2;
	return true;
}

// Have the call asked for half as much. False where it asks for nothing that has a half.
static bool shortened(pid_t id, struct user_regs_struct *regs)
{
	struct iovec vector;
	switch (regs->orig_rax) {
	case SYS_read:
	case SYS_write:
	case SYS_pread64:
	case SYS_pwrite64:
	case SYS_recvfrom:
	case SYS_sendto:
		return halve(&regs->rdx);
	case SYS_copy_file_range:
		return halve(&regs->r8);
	case SYS_sendfile:
		return halve(&regs->r10);
	case SYS_readv:
	case SYS_writev:
	case SYS_preadv:
	case SYS_pwritev:
		if (halve(&regs->rdx))
			return true;
		// Of one piece: as the call that takes one.
		if (regs->rdx != 1 || !peek(id, regs->rsi, &vector, sizeof vector) || vector.iov_len < 2)
			return false;
		regs->rsi = (unsigned long long)vector.iov_base;
		regs->rdx = vector.iov_len / 2;
		regs->orig_rax = regs->orig_rax == SYS_readv    ? SYS_read
		                 : regs->orig_rax == SYS_writev ? SYS_write
		                 : regs->orig_rax == SYS_preadv ? SYS_pread64
		                                                : SYS_pwrite64;
		return true;
	default:
		return false;
	}
}

// Whether a task is about to make a file, which takes room: not where it is there.
static bool makes_file(pid_t id, int directory, uint64_t address, uint64_t flags)
{
	char path[300], place[400];

	if (flags & O_TMPFILE & ~O_DIRECTORY)
		return true;
	if (!(flags & O_CREAT))
		return false;
	peek_string(id, address, path, sizeof path);
	if (*path == '/')
		snprintf(place, sizeof place, "/proc/%d/root%s", id, path);
	else if (directory == AT_FDCWD)
		snprintf(place, sizeof place, "/proc/%d/cwd/%s", id, path);
	else
		snprintf(place, sizeof place, "/proc/%d/fd/%d/%s", id, directory, path);
	return access(place, F_OK) < 0;
}

static bool is_for_writing(pid_t id, int fd)
{
	char place[64];
	long long position;
	unsigned flags;

	snprintf(place, sizeof place, "/proc/%d/fdinfo/%d", id, fd);
	FILE *file = fopen(place, "r");
	if (!file)
		return false;
	bool found = fscanf(file, "pos: %lld flags: %o", &position, &flags) == 2;
	fclose(file);
	return found && (flags & O_ACCMODE) != O_RDONLY;
}

// Whether the kernel could answer so: not every error is one of a call whatever its arguments are.
static bool applies(const struct injector_fault *fault, pid_t id, const struct user_regs_struct *regs)
{
	struct user_regs_struct copy = *regs;
	bool for_room = fault->error == ENOSPC || fault->error == EDQUOT;
	uint64_t flags;
	struct flock lock;
	if (fault->how == SHORT)
		return shortened(id, &copy);
	switch (regs->orig_rax) {
	case SYS_open:
		return !for_room || makes_file(id, AT_FDCWD, regs->rdi, regs->rsi);
	case SYS_openat:
		return !for_room || makes_file(id, (int)regs->rdi, regs->rsi, regs->rdx);
	case SYS_openat2:
		return !for_room ||
		       (peek(id, regs->rdx, &flags, sizeof flags) && makes_file(id, (int)regs->rdi, regs->rsi, flags));
	case SYS_ftruncate:
		return !for_room || regs->rsi > 0;
	case SYS_fcntl:
		if (regs->rsi == F_DUPFD || regs->rsi == F_DUPFD_CLOEXEC)
			return fault->error == EMFILE;
		// To give a lock back needs none.
		return fault->error == ENOLCK && regs->rsi == F_SETLK && peek(id, regs->rdx, &lock, sizeof lock) &&
		       lock.l_type != F_UNLCK;
	case SYS_flock:
		return !(regs->rsi & LOCK_UN);
	case SYS_close: // of what was only read it has nothing to report
		return is_for_writing(id, (int)regs->rdi);
	case SYS_dup2:
	case SYS_dup3:
		return fault->error != EMFILE;
	case SYS_ioctl: // those of terminals and the like are answered without looking at anything
		if ((regs->rsi >> 8 & 0xff) == 'T')
			return false;
		return !for_room || regs->rsi == FICLONE || regs->rsi == FICLONERANGE;
	default:
		return true;
	}
}

static void resume(enum __ptrace_request how, pid_t id, int number)
{
	ptrace(how, id, 0, (void *)(intptr_t)number); // it may have been killed meanwhile
}

static void at_mark(struct state *s, pid_t id, struct user_regs_struct *regs)
{
	s->counting = regs->rsi != 0;
	regs->orig_rax = (unsigned long long)-1;
	regs->rax = 0;
	ptrace(PTRACE_SETREGS, id, 0, regs);
}

// Returns how the task goes on: to its next stop, or to the end of this call.
static enum __ptrace_request at_call(struct state *s, struct task *task)
{
	struct user_regs_struct regs;
	if (ptrace(PTRACE_GETREGS, task->id, 0, &regs) < 0)
		return PTRACE_CONT;
	int number = (int)regs.orig_rax;
	if (number == SYS_prctl) {
		at_mark(s, task->id, &regs);
		return PTRACE_CONT;
	}
	if (!s->counting || task->foreign || number < 0 || number >= CALLS)
		return PTRACE_CONT;
	uint32_t nth = ++s->outcome->counted[number];
	const struct injector_fault *fault = s->fault;
	bool met = fault->calls[number];
	bool hit = met && fault->at && (++s->met == fault->at || (fault->persistent && s->met > fault->at)) &&
	           applies(fault, task->id, &regs);
	char text[TEXT];
	if (s->log || (hit && !s->outcome->injected))
		describe(task->id, &regs, nth, text);
	if (s->log)
		fprintf(s->log, "%s%s\n", hit ? "! " : "", text);
	if (!hit)
		return PTRACE_CONT;
	if (!s->outcome->injected++)
		memcpy(s->outcome->text, text, TEXT);
	task->before = regs;
	task->error = fault->how == FAIL_AFTER ? fault->error : 0;
	if (fault->how == FAIL) {
		regs.orig_rax = (unsigned long long)-1;
		regs.rax = (unsigned long long)-fault->error;
		ptrace(PTRACE_SETREGS, task->id, 0, &regs);
		return PTRACE_CONT;
	}
	if (fault->how == SHORT) {
		shortened(task->id, &regs);
		ptrace(PTRACE_SETREGS, task->id, 0, &regs);
	}
	task->pending = true;
	return PTRACE_SYSCALL;
}

// The call that was changed returns: the caller's registers are its own again.
static void at_return(struct task *task)
{
	struct user_regs_struct regs;
	task->pending = false;
	if (ptrace(PTRACE_GETREGS, task->id, 0, &regs) < 0)
		return;
	regs.rdi = task->before.rdi;
	regs.rsi = task->before.rsi;
	regs.rdx = task->before.rdx;
	regs.r10 = task->before.r10;
	regs.r8 = task->before.r8;
	if (task->error)
		regs.rax = (unsigned long long)-task->error;
	ptrace(PTRACE_SETREGS, task->id, 0, &regs);
}

static void at_stop(struct state *s, pid_t id, int status)
{
	struct task *task = task_of(s, id);
	int number = WSTOPSIG(status), event = status >> 16;
	unsigned long message = 0;
	switch (event) {
	case PTRACE_EVENT_SECCOMP:
		resume(at_call(s, task), id, 0);
		return;
	case PTRACE_EVENT_FORK:
	case PTRACE_EVENT_VFORK:
	case PTRACE_EVENT_CLONE:
		if (ptrace(PTRACE_GETEVENTMSG, id, 0, &message) == 0)
			task_of(s, (pid_t)message)->foreign = task->foreign;
		resume(PTRACE_CONT, id, 0);
		return;
	case PTRACE_EVENT_EXEC:
		// A thread that becomes the program takes the process's number, and what was told of its own is over.
		if (ptrace(PTRACE_GETEVENTMSG, id, 0, &message) == 0 && (pid_t)message != id)
			task_of(s, (pid_t)message)->id = 0;
		task->foreign = true;
		task->pending = false;
		resume(PTRACE_CONT, id, 0);
		return;
	case PTRACE_EVENT_STOP:
		resume(number == SIGTRAP ? PTRACE_CONT : PTRACE_LISTEN, id, 0);
		return;
	default:
		if (number == (SIGTRAP | 0x80)) {
			if (task->pending)
				at_return(task);
			number = 0;
		}
		resume(PTRACE_CONT, id, number);
	}
}

static void kill_all(struct state *s)
{
	for (int i = 0; i < TASKS; i++)
		if (s->tasks[i].id)
			kill(s->tasks[i].id, SIGKILL);
}

static void set_alarm(double seconds)
{
	// Again and again: the first may come just before the call that it is to interrupt.
	struct itimerval timer = {
	    .it_value = {(time_t)seconds, (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)},
	    .it_interval = {0, seconds > 0 ? 50000 : 0}};
	late = 0;
	setitimer(ITIMER_REAL, &timer, NULL);
}

static void supervise(struct state *s, pid_t child, double seconds, double after_seconds)
{
	bool killed = false;
	set_alarm(seconds);
	while (any_left(s)) {
		int status;
		pid_t id = waitpid(-1, &status, __WALL);
		if (id < 0 && errno != EINTR)
			break;
		if (late && !killed) {
			s->outcome->hung = s->outcome->status < 0;
			for (int i = 0; i < TASKS && !s->outcome->hung; i++)
				s->outcome->left += s->tasks[i].id != 0;
			kill_all(s);
			killed = true;
		}
		if (id < 0)
			continue;
		if (WIFSTOPPED(status)) {
			at_stop(s, id, status);
			continue;
		}
		if (id == child) {
			s->outcome->status = status;
			if (!killed)
				set_alarm(after_seconds);
		}
		task_of(s, id)->id = 0;
	}
	set_alarm(0);
}

// Supervise `child` and what it starts until all of them have ended: a child of this process, which has a single thread and
// no other children, that waits for `go` (a descriptor that it reads a byte from) before it calls `injector_enter`. What
// runs after `seconds`, or `after_seconds` after the child's end, is killed. `log`: a file to get every call, or NULL.
// Returns 0, or -1 with errno.
__attribute__((visibility("default"))) int injector_supervise(pid_t child, int go, const struct injector_fault *fault,
                                                              double seconds, double after_seconds, const char *log,
                                                              struct injector_outcome *outcome)
{
	struct state *s = calloc(1, sizeof *s);
	if (!s)
		return -1;
	memset(outcome, 0, sizeof *outcome);
	outcome->status = -1;
	s->fault = fault;
	s->outcome = outcome;
	s->log = log ? fopen(log, "w") : NULL;
	task_of(s, child);
	struct sigaction alarmed = {.sa_handler = on_alarm}, before;
	sigaction(SIGALRM, &alarmed, &before);
	long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
	               PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
	int result = ptrace(PTRACE_SEIZE, child, 0, options) < 0 || write(go, "", 1) != 1 ? -1 : 0;
	int error = errno;
	if (result == 0)
		supervise(s, child, seconds, after_seconds);
	sigaction(SIGALRM, &before, NULL);
	if (s->log)
		fclose(s->log);
	free(s);
	errno = error;
	return result;
}
