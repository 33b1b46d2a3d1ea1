/* bare_overlay LOWER BASE COUNT: what a container's mount costs with nothing around it.
 *
 * Makes BASE/<i>/{upper,work,root} and mounts an overlay of LOWER on root by one mount(2), for each i < COUNT, and leaves
 * all mounted. Prints the microseconds of each, one a line. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>

static double microseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void check(int result, const char *what)
{
	if (result) {
		fprintf(stderr, "bare_overlay: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static void make_and_mount(const char *lower, const char *base, int i)
{
	static const char *const parts[] = { "", "/upper", "/work", "/root" };
	char path[512], options[2048];

	for (size_t k = 0; k < sizeof(parts) / sizeof(parts[0]); k++) {
		snprintf(path, sizeof(path), "%s/%d%s", base, i, parts[k]);
		check(mkdir(path, 0755), path);
	}
	snprintf(options, sizeof(options), "lowerdir=%s,upperdir=%s/%d/upper,workdir=%s/%d/work", lower, base, i, base, i);
	check(mount("overlay", path, "overlay", 0, options), path);
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: bare_overlay LOWER BASE COUNT\n");
		return 2;
	}
	for (int i = 0; i < atoi(argv[3]); i++) {
		double begin = microseconds();

		make_and_mount(argv[1], argv[2], i);
		printf("%.1f\n", microseconds() - begin);
	}
	return 0;
}
