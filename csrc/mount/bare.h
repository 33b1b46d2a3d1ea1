/* System calls without a C library, for the small programs of this room: x86-64 and AArch64. */
#ifndef LS_BARE_H
#define LS_BARE_H

#include <linux/signal.h>
#include <stdint.h>
#include <sys/syscall.h>

/* Of the kernel, which has 64 signals. */
typedef uint64_t ls_bare_signals;
#define LS_BARE_ALL_SIGNALS (~(ls_bare_signals)0)
#define LS_BARE_SIGNAL(number) ((ls_bare_signals)1 << ((number)-1))

/* A system call, with its negative error as the kernel gives it. */
static inline long ls_bare_call(long number, long a, long b, long c, long d, long e)
{
#ifdef __x86_64__
	register long fourth __asm__("r10") = d;
	register long fifth __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall"
	                 : "=a"(result)
	                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
	                 : "rcx", "r11", "memory");
	return result;
#else
	register long which __asm__("x8") = number;
	register long first __asm__("x0") = a;
	register long second __asm__("x1") = b;
	register long third __asm__("x2") = c;
	register long fourth __asm__("x3") = d;
	register long fifth __asm__("x4") = e;

	__asm__ volatile("svc 0"
	                 : "+r"(first)
	                 : "r"(which), "r"(second), "r"(third), "r"(fourth), "r"(fifth)
	                 : "memory");
	return first;
#endif
}

#endif
