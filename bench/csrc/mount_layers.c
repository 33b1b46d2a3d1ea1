/* mount_layers TARGET LOWER...: mount the directories, the topmost first, as one read-only overlay on TARGET.
 *
 * By the new mount API, a layer a call: mount(2) cuts its options off after a page, which 500 layers do not fit in. Paths
 * are at most 255 bytes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

static void check(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "mount_layers: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	int context, mount;

	if (argc < 3) {
		fprintf(stderr, "usage: mount_layers TARGET LOWER...\n");
		return 2;
	}
	context = fsopen("overlay", FSOPEN_CLOEXEC);
	check(context, "fsopen");
	for (int i = 2; i < argc; i++)
		check(fsconfig(context, FSCONFIG_SET_STRING, "lowerdir+", argv[i], 0), argv[i]);
	check(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "making the overlay");
	mount = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY);
	check(mount, "fsmount");
	check(move_mount(mount, "", AT_FDCWD, argv[1], MOVE_MOUNT_F_EMPTY_PATH), argv[1]);
	return 0;
}
