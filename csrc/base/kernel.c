#include "kernel.h"

#include <string.h>

#include "cpu.h"

const char *ls_kernel_name(const void *kernel)
{
	return ((const struct ls_kernel *)kernel)->name;
}

int ls_kernel_runs_here(const void *kernel)
{
	unsigned features = ((const struct ls_kernel *)kernel)->features;

	return (ls_cpu_features() & features) == features;
}

static const struct ls_kernel *at(const void *kernels, size_t i, size_t struct_bytes)
{
	return (const struct ls_kernel *)((const char *)kernels + i * struct_bytes);
}

int ls_kernel_find(const char *what, const void *kernels, size_t n, size_t struct_bytes, const char *name,
                   size_t *found, struct ls_error *err)
{
	if (!name || !strcmp(name, "auto")) {
		*found = n - 1;
		while (!ls_kernel_runs_here(at(kernels, *found, struct_bytes)))
			--*found; /* ends at the portable one */
		return LS_OK;
	}
	for (size_t i = 0; i < n; i++) {
		const struct ls_kernel *kernel = at(kernels, i, struct_bytes);

		if (strcmp(name, kernel->name))
			continue;
		if (!ls_kernel_runs_here(kernel))
			return ls_fail(
			    err, LS_UNSUPPORTED,
			    "the %s kernel \"%s\" was asked for, which this CPU cannot run; ask for \"auto\"", what,
			    name);
		*found = i;
		return LS_OK;
	}
	return ls_fail(err, LS_NOT_FOUND, "there is no %s kernel \"%s\" in this build; ask for \"auto\"", what,
	               LS_SHOWN_TEXT(name));
}
