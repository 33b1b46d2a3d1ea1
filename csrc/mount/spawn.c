#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/retry.h"
#include "fscontext.h"
#include "spawn.h"

#define STACK_SIZE (64 * 1024)
#define KERNEL_SIGNALS 64 /* _NSIG of the kernel, on x86-64 and arm64 */

/* The kernel's own signal set: the C library's calls leave out the two signals it uses itself, and those must not
 * reach a child that still shares this process's memory. */
typedef uint64_t kernel_sigset;

enum step {
	STEP_NONE,
	STEP_GROUP,
	STEP_SESSION,
	STEP_NAMESPACE,
	STEP_PROPAGATION,
	STEP_HIDE,
	STEP_DESCRIPTORS,
	STEP_TERMINAL,
	STEP_DIRECTORY,
	STEP_EXEC,
};

/* What parent and child share. The parent sleeps (CLONE_VFORK) until the child has executed its program or ended. */
struct launch {
	const struct ls_spawn *spawn;
	int enters_group; /* the child has its group to enter: the kernel could not start it there */
	const char *path; /* of the step that failed, where it has one */
	int sys_errno;
	enum step failed;
};

static void set_signal_mask(const kernel_sigset *set, kernel_sigset *old)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, set, old, sizeof(*set));
}

static int fail_step(struct launch *launch, enum step step, const char *path)
{
	launch->failed = step;
	launch->path = path;
	launch->sys_errno = errno;
	return -1;
}

/* Handlers first of all: they are this process's functions. By the system call, as the C library refuses the two signals
 * that it keeps for itself, and make(1) starts programs with those ignored. An action of zeros is SIG_DFL with no flags
 * on every architecture. */
static void reset_signals(void)
{
	static const unsigned long plain[8];

	for (int number = 1; number <= KERNEL_SIGNALS; number++)
		syscall(SYS_rt_sigaction, number, plain, NULL, sizeof(kernel_sigset));
}

/* A slave, not private: what is unmounted outside goes away here too and is not kept busy by this copy, while nothing
 * done here is seen outside. */
static int enter_namespace(struct launch *launch)
{
	const char *const *hide = launch->spawn->hide;

	if (unshare(CLONE_NEWNS))
		return fail_step(launch, STEP_NAMESPACE, NULL);
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
		return fail_step(launch, STEP_PROPAGATION, NULL);
	for (; hide && *hide; hide++)
		if (mount("none", *hide, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755") && errno != ENOENT)
			return fail_step(launch, STEP_HIDE, *hide);
	return 0;
}

static int enter_group(struct launch *launch)
{
	const struct ls_spawn *spawn = launch->spawn;
	int fd;

	/* One's own thread, named by 0, is moved without waiting for a grace period of RCU; a process, or another one, is
	 * not. */
	for (size_t i = 0; i < spawn->task_fd_count; i++)
		if (write(spawn->task_fds[i], "0", 1) < 0)
			return fail_step(launch, STEP_GROUP, NULL);
	if (!launch->enters_group)
		return 0;
	fd = openat(spawn->group_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) < 0)
		return fail_step(launch, STEP_GROUP, NULL);
	close(fd);
	return 0;
}

/* Sources among the targets that another one would overwrite are first copied out of the way. */
static int place_descriptors(struct launch *launch)
{
	int count = (int)launch->spawn->fd_count;
	int source[LS_SPAWN_FDS];

	for (int target = 0; target < count; target++) {
		source[target] = launch->spawn->fds[target];
		if (source[target] < 0)
			continue;
		if (source[target] < count && source[target] != target)
			source[target] = fcntl(source[target], F_DUPFD_CLOEXEC, count);
		if (source[target] < 0)
			return fail_step(launch, STEP_DESCRIPTORS, NULL);
	}
	for (int target = 0; target < count; target++) {
		int result;

		if (source[target] < 0) {
			close(target);
			continue;
		}
		result = source[target] == target ? fcntl(target, F_SETFD, 0) : dup2(source[target], target);
		if (result < 0)
			return fail_step(launch, STEP_DESCRIPTORS, NULL);
	}
	return 0;
}

static int prepare(struct launch *launch)
{
	const struct ls_spawn *spawn = launch->spawn;

	if (enter_group(launch))
		return -1;
	if (spawn->controlling_terminal && setsid() < 0)
		return fail_step(launch, STEP_SESSION, NULL);
	if (spawn->private_mounts && enter_namespace(launch))
		return -1;
	if (place_descriptors(launch))
		return -1;
	if (spawn->controlling_terminal && ioctl(0, TIOCSCTTY, 0))
		return fail_step(launch, STEP_TERMINAL, NULL);
	if (spawn->cwd && chdir(spawn->cwd))
		return fail_step(launch, STEP_DIRECTORY, spawn->cwd);
	return 0;
}

/* Returns where it fails. A script is ENOENT here: its interpreter would be given a descriptor that is closed. */
static void execute_read_only(const struct ls_spawn *spawn)
{
	int fd = ls_mount_detached_read_only(spawn->argv[0]);

	if (fd < 0)
		return;
	syscall(SYS_execveat, fd, "", spawn->argv, spawn->envp, AT_EMPTY_PATH);
	close(fd);
}

static int run_child(void *argument)
{
	static const kernel_sigset none;
	struct launch *launch = argument;
	const struct ls_spawn *spawn = launch->spawn;

	reset_signals();
	if (!prepare(launch)) {
		set_signal_mask(&none, NULL);
		if (spawn->read_only_program)
			execute_read_only(spawn);
		execve(spawn->argv[0], (char *const *)spawn->argv, (char *const *)spawn->envp);
		fail_step(launch, STEP_EXEC, spawn->argv[0]);
	}
	_exit(127);
}

static int explain(const struct launch *launch, struct ls_error *err)
{
	static const char *const steps[] = {
		[STEP_NONE] = "start",
		[STEP_GROUP] = "enter the control group for",
		[STEP_SESSION] = "start a session for",
		[STEP_NAMESPACE] = "make a mount namespace for",
		[STEP_PROPAGATION] = "make the mount namespace private for",
		[STEP_HIDE] = "hide a directory from",
		[STEP_DESCRIPTORS] = "pass descriptors to",
		[STEP_TERMINAL] = "make descriptor 0 the controlling terminal of",
		[STEP_DIRECTORY] = "change the directory for",
		[STEP_EXEC] = "execute",
	};
	const char *program = launch->spawn->argv[0];
	const char *path = launch->path && launch->path != program ? launch->path : "";
	const char *shown = LS_SHOWN_TEXT(program);

	if (launch->failed == STEP_NAMESPACE && launch->sys_errno == EPERM)
		return ls_fail(err, LS_UNSUPPORTED,
		               "cannot make a mount namespace for \"%s\": it needs CAP_SYS_ADMIN: run as root", shown);
	errno = launch->sys_errno;
	return ls_fail_errno(err, "cannot %s \"%s\"%s%s", steps[launch->failed], shown, *path ? ": " : "",
	                     LS_SHOWN_TEXT(path));
}

static void reap(int pid)
{
	(void)TEMP_FAILURE_RETRY(waitpid(pid, NULL, 0));
}

#if defined(__x86_64__)
/* clone3(2), whose child calls `run` on the stack in `args` and never returns from it. There is no wrapper in the C
 * library, and a system call that returns twice, on two stacks, cannot be a function of C. */
static long clone_onto_stack(struct clone_args *args, int (*run)(void *), void *argument)
{
	long result = SYS_clone3;

	__asm__ volatile("syscall\n\t"
	                 "testq %%rax, %%rax\n\t"
	                 "jnz 1f\n\t"
	                 "movq %[argument], %%rdi\n\t"
	                 "callq *%[run]\n\t"
	                 "ud2\n"
	                 "1:"
	                 : "+a"(result)
	                 : "D"(args), "S"(sizeof(*args)), [run] "r"(run), [argument] "r"(argument)
	                 : "rcx", "r11", "cc", "memory");
	return result;
}
#elif defined(__aarch64__)
static long clone_onto_stack(struct clone_args *args, int (*run)(void *), void *argument)
{
	register long number __asm__("x8") = SYS_clone3;
	register long result __asm__("x0") = (long)args;
	register long size __asm__("x1") = sizeof(*args);

	__asm__ volatile("svc #0\n\t"
	                 "cbnz x0, 1f\n\t"
	                 "mov x0, %[argument]\n\t"
	                 "blr %[run]\n\t"
	                 "brk #1\n"
	                 "1:"
	                 : "+r"(result)
	                 : "r"(size), "r"(number), [run] "r"(run), [argument] "r"(argument)
	                 : "cc", "memory");
	return result;
}
#else
static long clone_onto_stack(struct clone_args *args, int (*run)(void *), void *argument)
{
	(void)args, (void)run, (void)argument;
	return -ENOSYS;
}
#endif

/* Start the child inside its group where the kernel can (Linux 5.7), which no other way is without waiting for RCU. The
 * process id, or -1 with errno. */
static int start_child(struct launch *launch, char *stack)
{
	const int flags = CLONE_VM | CLONE_VFORK;
	struct clone_args args = {
	    .flags = (uint64_t)flags | CLONE_INTO_CGROUP,
	    .exit_signal = SIGCHLD,
	    .stack = (uint64_t)(uintptr_t)stack,
	    .stack_size = STACK_SIZE,
	    .cgroup = (uint64_t)launch->spawn->group_fd,
	};
	long child;

	if (launch->spawn->group_fd >= 0) {
		child = clone_onto_stack(&args, run_child, launch);
		if (child >= 0)
			return (int)child;
		if (child != -ENOSYS) {
			errno = (int)-child;
			return -1;
		}
		launch->enters_group = 1;
	}
	return clone(run_child, stack + STACK_SIZE, flags | SIGCHLD, launch);
}

int ls_spawn(const struct ls_spawn *spawn, int *pid, struct ls_error *err)
{
	const kernel_sigset all = ~(kernel_sigset)0;
	struct launch launch = {.spawn = spawn};
	kernel_sigset before;
	int child, saved;
	char *stack = malloc(STACK_SIZE);

	if (!stack)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for the stack of a new process");
	set_signal_mask(&all, &before);
	child = start_child(&launch, stack);
	saved = errno;
	set_signal_mask(&before, NULL);
	free(stack);
	if (child < 0) {
		errno = saved;
		return ls_fail_errno(err, "cannot start a new process%s",
		                     spawn->group_fd < 0 ? "" : " in its control group");
	}
	if (launch.failed) {
		reap(child);
		return explain(&launch, err);
	}
	*pid = child;
	return LS_OK;
}
