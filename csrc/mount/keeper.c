#include "keeper.h"

#include <linux/signal.h>
#include <linux/time_types.h>
#include <linux/wait.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#if defined(__x86_64__) || defined(__aarch64__)

/* Of the kernel, which has 64 signals. */
static const uint64_t all_signals = ~(uint64_t)0;
static const struct __kernel_timespec look_again = {0, 5000000};

/* A system call, with its negative error as the kernel gives it. */
static long call(long number, long a, long b, long c, long d)
{
#ifdef __x86_64__
	register long fourth __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall"
	                 : "=a"(result)
	                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
	                 : "rcx", "r11", "memory");
	return result;
#else
	register long which __asm__("x8") = number;
	register long first __asm__("x0") = a;
	register long second __asm__("x1") = b;
	register long third __asm__("x2") = c;
	register long fourth __asm__("x3") = d;

	__asm__ volatile("svc 0" : "+r"(first) : "r"(which), "r"(second), "r"(third), "r"(fourth) : "memory");
	return first;
#endif
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
