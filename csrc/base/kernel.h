/* Kernels: several ways to compute the same bits, each with a name and with what it needs of the CPU. A module
 * lists its own in an array of structs that begin with a struct ls_kernel, from the slowest to the fastest, the
 * portable one first. */
#ifndef LS_KERNEL_H
#define LS_KERNEL_H

#include <stddef.h>

#include "status.h"

struct ls_kernel {
	const char *name;
	unsigned features; /* enum ls_cpu_feature; 0 for the portable one */
};

/* Of a struct that begins so. */
const char *ls_kernel_name(const void *kernel);
int ls_kernel_runs_here(const void *kernel);

/* The place in an array of `n` structs of `struct_bytes` each, of the kernel of that name; NULL or "auto" for the
 * last that runs here. `what` names the module in messages. LS_NOT_FOUND for an unknown name, LS_UNSUPPORTED where
 * the CPU lacks it. */
int ls_kernel_find(const char *what, const void *kernels, size_t n, size_t struct_bytes, const char *name,
                   size_t *found, struct ls_error *err);

#endif
