// Has an allocation of the C core fail. To be preloaded (LD_PRELOAD); used by tests/campaigns/injection.py.
//
// Counted is what the objects below layerstore/_core/ call themselves: malloc, calloc, realloc, reallocarray, aligned_alloc,
// posix_memalign, mmap, opendir, fdopendir, pthread_create. What Python, SQLite or the C library allocate for themselves
// never fails.

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

#define PUBLIC __attribute__((visibility("default")))
#define FAILS fails((uintptr_t)__builtin_return_address(0))

enum { RANGES = 64 };
static struct range {
	uintptr_t begin, end;
} ranges[RANGES];
static int range_count;
static atomic_bool armed;
static atomic_uint counted, failed;
static unsigned first;
static bool every_later;

static int collect(struct dl_phdr_info *info, size_t size, void *context)
{
	(void)size;
	(void)context;
	if (!info->dlpi_name || !strstr(info->dlpi_name, "/layerstore/_core/"))
		return 0;
	for (int i = 0; i < info->dlpi_phnum && range_count < RANGES; i++)
		if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
			uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
			ranges[range_count++] = (struct range){begin, begin + info->dlpi_phdr[i].p_memsz};
		}
	return 0;
}

static bool fails(uintptr_t caller)
{
	if (!atomic_load_explicit(&armed, memory_order_acquire))
		return false;
	bool ours = false;
	for (int i = 0; i < range_count && !ours; i++)
		ours = caller >= ranges[i].begin && caller < ranges[i].end;
	if (!ours)
		return false;
	unsigned nth = atomic_fetch_add(&counted, 1) + 1;
	if (!first || (nth != first && !(every_later && nth > first)))
		return false;
	atomic_fetch_add(&failed, 1);
	errno = ENOMEM;
	return true;
}

// From now on the `at`th fails, from 1, and every later one if `persistent`; 0: none, they are only counted.
PUBLIC void allocations_arm(unsigned at, int persistent)
{
	range_count = 0;
	dl_iterate_phdr(collect, NULL);
	first = at;
	every_later = persistent;
	atomic_store(&counted, 0);
	atomic_store(&failed, 0);
	atomic_store_explicit(&armed, true, memory_order_release);
}

PUBLIC void allocations_disarm(void)
{
	atomic_store(&armed, false);
}
PUBLIC unsigned allocations_counted(void)
{
	return atomic_load(&counted);
}
PUBLIC unsigned allocations_failed(void)
{
	return atomic_load(&failed);
}

PUBLIC void *malloc(size_t size)
{
	return FAILS ? NULL : __libc_malloc(size);
}
PUBLIC void *calloc(size_t count, size_t size)
{
	return FAILS ? NULL : __libc_calloc(count, size);
}
PUBLIC void *realloc(void *block, size_t size)
{
	return FAILS ? NULL : __libc_realloc(block, size);
}

PUBLIC void *reallocarray(void *block, size_t count, size_t size)
{
	if (FAILS)
		return NULL;
	size_t bytes;
	if (__builtin_mul_overflow(count, size, &bytes)) {
		errno = ENOMEM;
		return NULL;
	}
	return __libc_realloc(block, bytes);
}

PUBLIC void *aligned_alloc(size_t alignment, size_t size)
{
	return FAILS ? NULL : __libc_memalign(alignment, size);
}

PUBLIC int posix_memalign(void **block, size_t alignment, size_t size)
{
	if (FAILS)
		return ENOMEM;
	*block = __libc_memalign(alignment, size);
	return *block ? 0 : ENOMEM;
}

PUBLIC void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	if (FAILS)
		return MAP_FAILED;
	return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset); // NOLINT
}

static DIR *(*real_opendir)(const char *);
static DIR *(*real_fdopendir)(int);
static int (*real_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

__attribute__((constructor)) static void find(void)
{
	real_opendir = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
	real_fdopendir = (DIR * (*)(int)) dlsym(RTLD_NEXT, "fdopendir");
	real_create =
	    (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
}

PUBLIC DIR *opendir(const char *path)
{
	return FAILS ? NULL : real_opendir(path);
}
PUBLIC DIR *fdopendir(int fd)
{
	return FAILS ? NULL : real_fdopendir(fd);
}

PUBLIC int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument)
{
	return FAILS ? EAGAIN : real_create(thread, attributes, body, argument);
}
