#include "keeper.h"

#include <linux/time_types.h>
#include <linux/wait.h>
#include <stddef.h>

#include "bare.h"

#if defined(__x86_64__) || defined(__aarch64__)

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

#ifdef __x86_64__
__attribute__((force_align_arg_pointer))
#endif
void ls_keeper(void)
{
	int ending = 0;

	call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all_signals, 0, sizeof(all_signals));
	for (;;) {
		long timeout = ending ? (long)&look_again : 0;
		long number = call(SYS_rt_sigtimedwait, (long)&all_signals, 0, timeout, sizeof(all_signals));

		while (call(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
			;
		if (is_to_end(number) && !ending) {
			ending = 1;
			call(SYS_kill, -1, SIGTERM, 0, 0);
		}
		if (ending && call(SYS_kill, -1, 0, 0, 0) < 0)
			call(SYS_exit_group, 0, 0, 0, 0);
	}
}

#endif
