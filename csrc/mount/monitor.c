#include "monitor.h"

#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/time_types.h>
#include <linux/wait.h>
#include <stddef.h>

#include "bare.h"

#if defined(__x86_64__) || defined(__aarch64__)

enum descriptor { CONTROL = 3, RECORD, PROGRAM, EVENTS, GROUP, HELD, TASKS, LAST_TASKS = 40 };

#define IN_BYTES 8192
#define OUT_BYTES 16384
#define LINE_BYTES 64 /* more than the time and the words before a text */
#define TEXT_BYTES 1024
#define FEW_FDS 1024 /* to be closed one by one, before Linux 5.9 */

static const ls_bare_signals no_signals, all_signals = LS_BARE_ALL_SIGNALS;

/* Which of the descriptors that may be missing were given. Before anything is opened, which takes their numbers. */
static int given[LAST_TASKS];

/* Streams of the container, and the log that both go to. */
struct stream {
	const char *name;
	int fd; /* -1: at its end */
};

static struct stream streams[2] = {{"stdout", -1}, {"stderr", -1}};
static char in[IN_BYTES], out[OUT_BYTES];
static size_t out_count;
static int log_fd = -1;
static uint64_t log_bytes, max_bytes, lost_bytes;

static long call1(long number, long a)
{
	return ls_bare_call(number, a, 0, 0, 0, 0);
}

static long call3(long number, long a, long b, long c)
{
	return ls_bare_call(number, a, b, c, 0, 0);
}

static long call4(long number, long a, long b, long c, long d)
{
	return ls_bare_call(number, a, b, c, d, 0);
}

static void leave(int status) __attribute__((noreturn));
static void leave(int status)
{
	for (;;)
		call1(SYS_exit_group, status);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		call1(SYS_close, *fd);
	*fd = -1;
}

static void set_signals(const ls_bare_signals *blocked)
{
	call4(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, (long)blocked, 0, sizeof(*blocked));
}

/* Text */

static char *add(char *at, const char *text)
{
	while (*text)
		*at++ = *text++;
	return at;
}

static char *add_number(char *at, uint64_t number, int digits)
{
	uint64_t rest = number;
	int count = 1;

	while (rest /= 10)
		count++;
	if (count < digits)
		count = digits;
	for (int i = count; i-- > 0; number /= 10)
		at[i] = (char)('0' + number % 10);
	return at + count;
}

static uint64_t number_of(const char *text)
{
	uint64_t number = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		number = number * 10 + (uint64_t)(*text - '0');
	return number;
}

static struct __kernel_timespec now(void)
{
	struct __kernel_timespec time = {0, 0};

	call3(SYS_clock_gettime, 0 /* CLOCK_REALTIME */, (long)&time, 0);
	return time;
}

static char *add_seconds(char *at)
{
	struct __kernel_timespec time = now();

	at = add_number(at, (uint64_t)time.tv_sec, 1);
	*at++ = '.';
	return add_number(at, (uint64_t)time.tv_nsec, 9);
}

/* RFC 3339 of a time after 1970. Years begin in March here, so that a leap day is the last of one: the months' first
 * days are then at (153 m + 2) / 5, and the day of an era of 400 years tells the year (Howard Hinnant,
 * "chrono-Compatible Low-Level Date Algorithms", civil_from_days). */
static char *add_time(char *at)
{
	struct __kernel_timespec time = now();
	uint64_t second = (uint64_t)time.tv_sec % 86400;
	uint64_t days = (uint64_t)time.tv_sec / 86400 + 719468;
	uint64_t era = days / 146097, day = days % 146097;
	uint64_t year = (day - day / 1460 + day / 36524 - day / 146096) / 365;
	uint64_t month;

	day -= 365 * year + year / 4 - year / 100;
	month = (5 * day + 2) / 153;
	day -= (153 * month + 2) / 5;
	at = add_number(at, year + era * 400 + (month >= 10), 4);
	*at++ = '-';
	at = add_number(at, month < 10 ? month + 3 : month - 9, 2);
	*at++ = '-';
	at = add_number(at, day + 1, 2);
	*at++ = 'T';
	at = add_number(at, second / 3600, 2);
	*at++ = ':';
	at = add_number(at, second / 60 % 60, 2);
	*at++ = ':';
	at = add_number(at, second % 60, 2);
	*at++ = '.';
	at = add_number(at, (uint64_t)time.tv_nsec, 9);
	*at++ = 'Z';
	return at;
}

/* The record */

static void record(const char *text, const char *end)
{
	call3(SYS_write, RECORD, (long)text, end - text);
}

static void record_start(void)
{
	char text[LINE_BYTES * 2];
	char *end = add(text, "monitor ");

	end = add_number(end, (uint64_t)call1(SYS_getpid, 0), 1);
	end = add(end, "\nstarted ");
	end = add_seconds(end);
	*end++ = '\n';
	record(text, end);
	ls_bare_call(SYS_renameat2, AT_FDCWD, (long)"record.new", AT_FDCWD, (long)"record", 0);
}

static void record_end(int status)
{
	static char text[TEXT_BYTES];
	char *end = text;

	if (lost_bytes) {
		end = add(end, "lost ");
		end = add_number(end, lost_bytes, 1);
		*end++ = '\n';
	}
	if (given[EVENTS]) {
		long count = call4(SYS_pread64, EVENTS, (long)end, TEXT_BYTES - 2 * LINE_BYTES, 0);

		end += count > 0 ? count : 0;
		if (end > text && end[-1] != '\n')
			*end++ = '\n';
	}
	if (status >= 0) {
		end = add(end, "exited ");
		end = add_number(end, (uint64_t)status, 1);
		*end++ = ' ';
		end = add_seconds(end);
		*end++ = '\n';
	}
	record(text, end);
}

/* The log */

static void open_log(void)
{
	long size;
	char last = '\n';

	log_fd = (int)call4(SYS_openat, AT_FDCWD, (long)"log", O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	size = log_fd < 0 ? -1 : call3(SYS_lseek, log_fd, 0, 2 /* SEEK_END */);
	log_bytes = size > 0 ? (uint64_t)size : 0;
	/* A monitor that was killed may have left half a line. */
	if (log_bytes && call4(SYS_pread64, log_fd, (long)&last, 1, size - 1) == 1 && last != '\n')
		log_bytes += call3(SYS_write, log_fd, (long)"\n", 1) == 1;
}

static void rotate_log(void)
{
	close_fd(&log_fd);
	ls_bare_call(SYS_renameat2, AT_FDCWD, (long)"log", AT_FDCWD, (long)"log.1", 0);
	open_log();
}

/* Write what was gathered: lines, all or none. */
static void flush_log(size_t text_bytes)
{
	size_t done = 0;

	if (log_bytes && log_bytes + out_count > max_bytes)
		rotate_log();
	if (log_fd < 0)
		open_log();
	while (log_fd >= 0 && done < out_count) {
		long count = call3(SYS_write, log_fd, (long)(out + done), (long)(out_count - done));

		if (count <= 0)
			break;
		done += (size_t)count;
	}
	if (done == out_count) {
		log_bytes += done;
	} else {
		lost_bytes += text_bytes;
		if (done)
			call3(SYS_ftruncate, log_fd, (long)log_bytes, 0);
	}
	out_count = 0;
}

/* Add what a stream gave to the log: each line by itself, and the rest as a part of one. */
static void log_text(const struct stream *stream, const char *text, size_t count)
{
	char head[LINE_BYTES];
	size_t head_bytes, gathered = 0;
	char *end = add_time(head);

	*end++ = ' ';
	end = add(end, stream->name);
	end = add(end, " F ");
	head_bytes = (size_t)(end - head);
	while (count) {
		size_t length = 0;
		int is_whole;

		while (length < count && text[length] != '\n')
			length++;
		is_whole = length < count;
		head[head_bytes - 2] = is_whole ? 'F' : 'P';
		if (out_count + head_bytes + length + 1 > OUT_BYTES) {
			flush_log(gathered);
			gathered = 0;
		}
		for (size_t i = 0; i < head_bytes; i++)
			out[out_count++] = head[i];
		for (size_t i = 0; i < length; i++)
			out[out_count++] = text[i];
		out[out_count++] = '\n';
		length += (size_t)is_whole;
		gathered += length;
		text += length;
		count -= length;
	}
	flush_log(gathered);
}

/* Returns whether there may be more at once. */
static int copy(struct stream *stream)
{
	long count = call3(SYS_read, stream->fd, (long)in, IN_BYTES);

	if (count > 0)
		log_text(stream, in, (size_t)count);
	else if (count == 0)
		close_fd(&stream->fd);
	return count > 0;
}

/* The runtime */

struct start {
	char *const *argv;
	char *const *envp;
	const char *hide;
	int fds[3];
};

static void run_runtime(const struct start *start, int enters_group) __attribute__((noreturn));
static void run_runtime(const struct start *start, int enters_group)
{
	set_signals(&no_signals);
	/* As spawn.c: one's own thread, named by 0, does not wait for a grace period of RCU. */
	for (int fd = TASKS; fd < LAST_TASKS && given[fd]; fd++)
		if (call3(SYS_write, fd, (long)"0", 1) < 0)
			leave(126);
	if (enters_group) {
		long fd = call4(SYS_openat, GROUP, (long)"cgroup.procs", O_WRONLY | O_CLOEXEC, 0);

		if (fd < 0 || call3(SYS_write, fd, (long)"0", 1) < 0)
			leave(126);
	}
	if (*start->hide) {
		if (call1(SYS_unshare, CLONE_NEWNS) < 0 ||
		    ls_bare_call(SYS_mount, 0, (long)"/", 0, MS_REC | MS_SLAVE, 0) < 0 ||
		    ls_bare_call(SYS_mount, (long)"none", (long)start->hide, (long)"tmpfs",
		                 MS_NOSUID | MS_NODEV | MS_NOEXEC, (long)"mode=0755") < 0)
			leave(126);
	}
	for (int target = 0; target < 3; target++)
		if (call3(SYS_dup3, start->fds[target], target, 0) < 0)
			leave(126);
	if (given[PROGRAM])
		ls_bare_call(SYS_execveat, PROGRAM, (long)"", (long)start->argv, (long)start->envp, AT_EMPTY_PATH);
	call3(SYS_execve, (long)start->argv[0], (long)start->argv, (long)start->envp);
	leave(127);
}

static long clone_into(int group)
{
	struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)group};

	return call3(SYS_clone3, (long)&args, sizeof(args), 0);
}

static long fork_plain(void)
{
	return ls_bare_call(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static long start_runtime(struct start *start)
{
	int ends[3][2];
	int has_group = given[GROUP];
	long pid = -1;

	for (int i = 0; i < 3; i++)
		if (call3(SYS_pipe2, (long)ends[i], O_CLOEXEC, 0) < 0)
			return -1;
	start->fds[0] = ends[0][0];
	start->fds[1] = ends[1][1];
	start->fds[2] = ends[2][1];
	close_fd(&ends[0][1]); /* nothing comes from its input */
	if (has_group)
		pid = clone_into(GROUP);
	if (pid < 0)
		pid = fork_plain();
	else
		has_group = 0;
	if (pid == 0)
		run_runtime(start, has_group);
	close_fd(&ends[0][0]);
	for (int i = 0; i < 2; i++) {
		close_fd(&ends[i + 1][1]);
		streams[i].fd = ends[i + 1][0];
		call3(SYS_fcntl, streams[i].fd, F_SETFL, O_NONBLOCK);
	}
	return pid;
}

static int status_of(int status)
{
	int number = status & 0x7f;

	return number ? 128 + number : status >> 8 & 0xff;
}

/* The process id that the runtime has written, and 0 where it has not. */
static long container_pid(void)
{
	char text[LINE_BYTES] = "";
	long fd = call4(SYS_openat, AT_FDCWD, (long)"pid", O_RDONLY | O_CLOEXEC, 0);

	if (fd < 0)
		return 0;
	call3(SYS_read, fd, (long)text, sizeof(text) - 1);
	call1(SYS_close, fd);
	call3(SYS_unlinkat, AT_FDCWD, (long)"pid", 0);
	return (long)number_of(text);
}

/* Whether somebody heard of it. */
static int tell_starter(int status, long pid)
{
	char text[LINE_BYTES];
	char *end = add_number(text, (uint64_t)status, 1);
	long count;

	*end++ = ' ';
	end = add_number(end, (uint64_t)pid, 1);
	*end++ = '\n';
	count = call3(SYS_write, CONTROL, (long)text, end - text);
	call1(SYS_close, CONTROL);
	return count > 0;
}

static void finish(char *const *program, char *const *envp) __attribute__((noreturn));
static void finish(char *const *program, char *const *envp)
{
	static const struct __kernel_timespec at_once;

	if (*program) {
		/* Those that came meanwhile, SIGPIPE of a starter that has gone. */
		while (call4(SYS_rt_sigtimedwait, (long)&all_signals, 0, (long)&at_once, sizeof(all_signals)) > 0)
			;
		set_signals(&no_signals);
		call3(SYS_fcntl, RECORD, F_SETFD, 0);
		call3(SYS_execve, (long)*program, (long)program, (long)envp);
	}
	leave(0);
}

/* Wait until a child ends or a stream gives something, and copy that. */
static void wait_and_copy(int ended)
{
	struct pollfd polled[3] = {{streams[0].fd, POLLIN, 0}, {streams[1].fd, POLLIN, 0}, {ended, POLLIN, 0}};

	if (ls_bare_call(SYS_ppoll, (long)polled, 3, 0, 0, 0) < 0)
		return;
	for (int i = 0; i < 2; i++)
		if (polled[i].revents)
			copy(&streams[i]);
	if (polled[2].revents)
		call3(SYS_read, ended, (long)in, IN_BYTES);
}

static long waited(long pid, int *status)
{
	return call4(SYS_wait4, pid, (long)status, WNOHANG, 0);
}

/* Watch a container to its end; its exit status, -1 where it is no child of this process. */
static int watch(long pid, int ended)
{
	for (;;) {
		int status = 0;
		long found;

		while ((found = waited(-1, &status)) > 0 && found != pid)
			;
		if (found == pid || found < 0) {
			/* With it everything else in the container has ended. */
			for (int i = 0; i < 2; i++)
				while (streams[i].fd >= 0 && copy(&streams[i]))
					;
			return found < 0 ? -1 : status_of(status);
		}
		wait_and_copy(ended);
	}
}

static int wait_for_runtime(long runtime, int ended)
{
	int status = 0;

	while (!waited(runtime, &status))
		wait_and_copy(ended);
	return status_of(status);
}

void ls_monitor_run(char **argv);
__attribute__((visibility("hidden"))) void ls_monitor_run(char **argv)
{
	const ls_bare_signals blocked = LS_BARE_ALL_SIGNALS & ~LS_BARE_SIGNAL(SIGTERM);
	const ls_bare_signals child = LS_BARE_SIGNAL(SIGCHLD);
	char **program = argv + 4;
	struct start start = {.argv = argv + 4, .hide = argv[3]};
	long runtime, pid;
	int ended, status;
	int end_of_given = (int)number_of(argv[2]);

	while (**program)
		program++;
	*program++ = NULL;
	for (start.envp = program; *start.envp++;)
		;
	max_bytes = number_of(argv[1]);
	/* So that no child is left to the starter, which may live on and wait for none. */
	if (fork_plain())
		leave(0);
	call1(SYS_setsid, 0);
	call3(SYS_prctl, PR_SET_CHILD_SUBREAPER, 1, 0);
	set_signals(&blocked);
	for (int fd = CONTROL; fd < end_of_given && fd < LAST_TASKS; fd++)
		given[fd] = call3(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC) == 0;
	/* Those that the starter has inherited from others. */
	if (call3(SYS_close_range, end_of_given, ~0U, 0) < 0)
		for (int fd = end_of_given; fd < FEW_FDS; fd++)
			call1(SYS_close, fd);
	ended = (int)call4(SYS_signalfd4, -1, (long)&child, sizeof(child), O_CLOEXEC | O_NONBLOCK);
	runtime = start_runtime(&start);
	status = runtime < 0 ? 126 : wait_for_runtime(runtime, ended);
	pid = status ? 0 : container_pid();
	if (!pid) {
		if (!tell_starter(status ? status : 255, 0))
			finish(program, start.envp);
		leave(1);
	}
	record_start();
	for (int fd = PROGRAM; fd < LAST_TASKS; fd++)
		if (given[fd] && fd != EVENTS)
			call1(SYS_close, fd);
	tell_starter(0, pid);
	status = watch(pid, ended);
	record_end(status);
	finish(program, start.envp);
}

/* The stack has the count of the arguments first, then these. */
#ifdef __x86_64__
__asm__(".globl ls_monitor\n"
        ".hidden ls_monitor\n"
        ".type ls_monitor, @function\n"
        "ls_monitor:\n\t"
        "xorl %ebp, %ebp\n\t"
        "leaq 8(%rsp), %rdi\n\t"
        "andq $-16, %rsp\n\t"
        "call ls_monitor_run\n");
#else
__asm__(".globl ls_monitor\n"
        ".hidden ls_monitor\n"
        ".type ls_monitor, %function\n"
        "ls_monitor:\n\t"
        "add x0, sp, #8\n\t"
        "bl ls_monitor_run\n");
#endif

#endif
