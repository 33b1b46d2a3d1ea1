/* cached FILE|DIRECTORY...: the bytes that each has in the page cache: a file or block device itself, a directory with
 * all below it on its file system.
 *
 * Counted by cachestat(2) (Linux >= 6.5), so that what else the machine does has no part in it. Contents of files are in
 * the cache of the file, a file system's own metadata in that of its block device: name it too, and first, as walking
 * the directories reads some of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHESTAT 451 /* on every architecture */

struct range {
	uint64_t offset;
	uint64_t length; /* 0: to the end */
};

struct cachestat {
	uint64_t cached;
	uint64_t dirty;
	uint64_t writeback;
	uint64_t evicted;
	uint64_t recently_evicted;
};

static unsigned long long cached_pages;

static void fail(const char *path)
{
	fprintf(stderr, "cached: %s: %s\n", path, strerror(errno));
	exit(1);
}

static int count(const char *path, const struct stat *st, int type, struct FTW *position)
{
	int fd;

	(void)position;
	if (type == FTW_DNR || type == FTW_NS)
		fail(path);
	if (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode) || S_ISBLK(st->st_mode)) {
		struct cachestat found;
		struct range all = {0, 0};

		fd = open(path, O_RDONLY | O_NOFOLLOW | O_NOATIME);
		if (fd < 0 || syscall(CACHESTAT, fd, &all, &found, 0))
			fail(path);
		close(fd);
		cached_pages += found.cached;
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: cached FILE|DIRECTORY...\n");
		return 2;
	}
	for (int i = 1; i < argc; i++) {
		struct stat st;

		cached_pages = 0;
		if (stat(argv[i], &st))
			fail(argv[i]);
		if (S_ISDIR(st.st_mode)) {
			if (nftw(argv[i], count, 64, FTW_PHYS | FTW_MOUNT))
				fail(argv[i]);
		} else {
			count(argv[i], &st, FTW_F, NULL);
		}
		printf("%llu\n", cached_pages * (unsigned long long)sysconf(_SC_PAGESIZE));
	}
	return 0;
}
