/* walk stat|read ROOT LIST: stat every path of LIST (one a line, relative to ROOT), or read every regular file of them.
 *
 * Prints the seconds that it took, how many there were, and the bytes read. A path that is not there is an error: the trees
 * that are compared must be the same. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void fail(const char *path)
{
	fprintf(stderr, "walk: %s: %s\n", path, strerror(errno));
	exit(1);
}

/* The file in memory, its lines ended by NUL; *end is behind the last one. */
static char *read_list(const char *path, char **end)
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
	for (char *at = text; at < text + st.st_size; at++)
		if (*at == '\n')
			*at = 0;
	*end = text + st.st_size;
	return text;
}

static long long read_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_NOFOLLOW);
	long long bytes = 0;
	ssize_t n;

	if (fd < 0)
		fail(path);
	while ((n = read(fd, buffer, sizeof(buffer))) > 0)
		bytes += n;
	if (n < 0)
		fail(path);
	close(fd);
	return bytes;
}

int main(int argc, char **argv)
{
	long count = 0;
	long long bytes = 0;
	char *path, *end;
	struct stat st;
	double begin;
	int reading;

	if (argc != 4) {
		fprintf(stderr, "usage: walk stat|read ROOT LIST\n");
		return 2;
	}
	reading = !strcmp(argv[1], "read");
	path = read_list(argv[3], &end);
	if (chdir(argv[2]))
		fail(argv[2]);
	begin = seconds();
	for (; path < end; path += strlen(path) + 1) {
		if (fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW))
			fail(path);
		if (reading && S_ISREG(st.st_mode))
			bytes += read_file(path);
		count++;
	}
	printf("%.6f %ld %lld\n", seconds() - begin, count, bytes);
	return 0;
}
