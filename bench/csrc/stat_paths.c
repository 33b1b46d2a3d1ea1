/* stat_paths ROOT LIST PASSES: fstatat every path of LIST (each ended by NUL, relative to ROOT), PASSES times over.
 *
 * Prints for each pass the nanoseconds a path and how many of them there were. A path that is not there is counted and
 * no error; anything else that goes wrong is one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

static void fail(const char *path)
{
	fprintf(stderr, "stat_paths: %s: %s\n", path, strerror(errno));
	exit(1);
}

static char *read_list(const char *path, const char **end)
{
	int fd = open(path, O_RDONLY);
	struct stat st;
	char *text;

	if (fd < 0 || fstat(fd, &st))
		fail(path);
	text = malloc(st.st_size + 1);
	if (!text || read(fd, text, st.st_size) != st.st_size)
		fail(path);
	close(fd);
	*end = text + st.st_size;
	return text;
}

/* How many of the paths are there; *count is how many were asked for. */
static long stat_all(const char *path, const char *end, long *count)
{
	struct stat st;
	long found = 0;

	for (*count = 0; path < end; path += strlen(path) + 1, ++*count) {
		if (!fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW))
			found++;
		else if (errno != ENOENT)
			fail(path);
	}
	return found;
}

int main(int argc, char **argv)
{
	const char *end;
	char *list;

	if (argc != 4) {
		fprintf(stderr, "usage: stat_paths ROOT LIST PASSES\n");
		return 2;
	}
	list = read_list(argv[2], &end);
	if (chdir(argv[1]))
		fail(argv[1]);
	for (int pass = 0; pass < atoi(argv[3]); pass++) {
		long count, found;
		double begin = nanoseconds();

		found = stat_all(list, end, &count);
		printf("%.2f %ld\n", (nanoseconds() - begin) / count, found);
	}
	return 0;
}
