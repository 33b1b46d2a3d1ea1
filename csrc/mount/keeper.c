#include "keeper.h"

#include <linux/errno.h>
#include <linux/limits.h>
#include <linux/time_types.h>
#include <linux/wait.h>
#include <stddef.h>

#include "bare.h"

#if defined(__x86_64__) || defined(__aarch64__)

enum { NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

static const ls_bare_signals all_signals = LS_BARE_ALL_SIGNALS;
static const struct __kernel_timespec look_again = {0, 5000000};

static long call(long number, long a, long b, long c, long d)
{
	return ls_bare_call(number, a, b, c, d, 0);
}

static int is_to_end(long number)
{
	return number == SIGTERM || number == SIGINT || number == SIGHUP || number == SIGQUIT;
}

static void end(long status)
{
	for (;;)
		call(SYS_exit_group, status, 0, 0, 0);
}

static const char *variable(char *const *environment, const char *name)
{
	for (; *environment; environment++) {
		const char *have = *environment, *want = name;

		while (*want && *have == *want)
			have++, want++;
		if (!*want && *have == '=')
			return have + 1;
	}
	return "";
}

/* As execvp(3), without a shell for what is no program. Returns the exit status that tells why not. */
static int execute(char *const *arguments, char *const *environment)
{
	static char path[PATH_MAX];
	const char *name = arguments[0], *search = variable(environment, "PATH");
	int status = NOT_FOUND;

	for (const char *at = name; *at; at++)
		if (*at == '/')
			search = 0;
	do {
		size_t length = 0;
		long failed;

		for (; search && *search && *search != ':' && length < sizeof(path) - 2; search++)
			path[length++] = *search;
		if (length)
			path[length++] = '/';
		for (const char *at = name; *at && length < sizeof(path) - 1; at++)
			path[length++] = *at;
		path[length] = 0;
		failed = call(SYS_execve, (long)path, (long)arguments, (long)environment, 0);
		if (failed != -ENOENT && failed != -ENOTDIR)
			status = NOT_EXECUTABLE;
	} while (search && *search++);
	return status;
}

/* Its process id. */
static long start(char *const *arguments, char *const *environment, const ls_bare_signals *signals)
{
	long child = call(SYS_clone, SIGCHLD, 0, 0, 0);

	if (child == 0) {
		call(SYS_rt_sigprocmask, SIG_SETMASK, (long)signals, 0, sizeof(*signals));
		end(execute(arguments, environment));
	}
	if (child < 0)
		end(NOT_EXECUTABLE);
	return child;
}

static int exit_status(int status)
{
	return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

/* `stack` is what the kernel leaves there: argc, the arguments, the environment. */
static void __attribute__((used)) keep(const long *stack)
{
	char *const *arguments = (char *const *)(stack + 1), *const *environment = arguments + stack[0] + 1;
	ls_bare_signals before;
	long child = 0;
	int ending = 0;

	call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all_signals, (long)&before, sizeof(all_signals));
	if (stack[0] > 1)
		child = start(arguments + 1, environment, &before);
	for (;;) {
		siginfo_t info;
		int status;
		long timeout = ending ? (long)&look_again : 0;
		long number = call(SYS_rt_sigtimedwait, (long)&all_signals, (long)&info, timeout, sizeof(all_signals));
		long ended;

		while ((ended = call(SYS_wait4, -1, (long)&status, WNOHANG, 0)) > 0)
			if (ended == child)
				end(exit_status(status));
		if (child) {
			if (number > 0 && number != SIGCHLD && info.si_code != SI_KERNEL)
				call(SYS_kill, child, number, 0, 0);
			continue;
		}
		if (is_to_end(number) && !ending) {
			ending = 1;
			call(SYS_kill, -1, SIGTERM, 0, 0);
		}
		if (ending && call(SYS_kill, -1, 0, 0, 0) < 0)
			end(0);
	}
}

/* ls_keeper: the stack pointer is the argument, and the stack is aligned as C has it. */
#ifdef __x86_64__
__asm__(".globl ls_keeper\nls_keeper:\n\txorl %ebp, %ebp\n\tmovq %rsp, %rdi\n\tandq $-16, %rsp\n\tcall keep\n");
#else
__asm__(".globl ls_keeper\nls_keeper:\n\tmov x29, xzr\n\tmov x0, sp\n\tbl keep\n");
#endif

#endif
