#define _GNU_SOURCE
#include "clone_tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "buffer.h"
#include "clone_impl.h"

/* A directory that is being cloned: its other entries are, once read; those directories in it follow, one by one. */
struct frame {
	DIR *source;
	int target_fd;
	struct stat status;
	struct ls_buffer subdirectories; /* names, each with its NUL */
	struct ls_buffer later;          /* likewise, of files that are being written out */
	size_t next;
	int passes;
	int changed; /* something went while it was read */
};

struct walk {
	struct ls_clone clone;
	struct frame *frames; /* from the top of the tree down */
	size_t depth, capacity;
};

static void close_frame(struct frame *frame)
{
	if (frame->source)
		closedir(frame->source);
	if (frame->target_fd >= 0)
		close(frame->target_fd);
	ls_buffer_free(&frame->subdirectories);
	ls_buffer_free(&frame->later);
}

static int reserve_frame(struct walk *walk)
{
	size_t capacity = walk->capacity ? 2 * walk->capacity : 16;
	struct frame *frames;

	if (walk->depth < walk->capacity)
		return LS_OK;
	frames = reallocarray(walk->frames, capacity, sizeof(*frames));
	if (!frames)
		return ls_fail(walk->clone.err, LS_NO_MEMORY, "out of memory for a tree %zu directories deep",
		               capacity);
	walk->frames = frames;
	walk->capacity = capacity;
	return LS_OK;
}

/* The directory opened for reading, NULL with errno otherwise. */
static DIR *open_source(int parent_fd, const char *name)
{
	int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);

	if (fd >= 0 && !directory)
		close(fd);
	return directory;
}

static int open_frame(struct frame *frame, int target_parent, const char *target)
{
	if (fstat(dirfd(frame->source), &frame->status))
		return -1;
	if (mkdirat(target_parent, target, 0700) && errno != EEXIST)
		return -1;
	frame->target_fd = openat(target_parent, target, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return frame->target_fd < 0 ? -1 : 0;
}

/* Go down into a directory. LS_CLONE_CHANGED where it has gone. */
static int enter(struct walk *walk, int source_parent, const char *source, int target_parent, const char *target)
{
	struct frame frame = {.target_fd = -1};
	int status = reserve_frame(walk);

	if (status)
		return status;
	frame.source = open_source(source_parent, source);
	if (!frame.source && walk->depth && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP))
		return LS_CLONE_CHANGED;
	if (!frame.source || open_frame(&frame, target_parent, target)) {
		status = ls_clone_fail(&walk->clone, source);
		close_frame(&frame);
		return status;
	}
	walk->frames[walk->depth++] = frame;
	return LS_OK;
}

static int add_name(struct walk *walk, struct ls_buffer *names, const char *name)
{
	return ls_buffer_append(names, name, strlen(name) + 1, walk->clone.err);
}

static int clone_entry(struct walk *walk, struct frame *frame, const struct dirent *entry)
{
	int source_fd = dirfd(frame->source);
	unsigned char type = entry->d_type;
	struct stat status;

	if (frame->passes && !fstatat(frame->target_fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
		return LS_OK;
	if (type == DT_UNKNOWN) {
		if (fstatat(source_fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
			return errno == ENOENT ? LS_CLONE_CHANGED : ls_clone_fail(&walk->clone, entry->d_name);
		type = IFTODT(status.st_mode);
	}
	if (type == DT_DIR)
		return add_name(walk, &frame->subdirectories, entry->d_name);
	if (type == DT_REG)
		return ls_clone_file(&walk->clone, source_fd, frame->target_fd, entry->d_name, 1);
	return ls_clone_special(&walk->clone, source_fd, frame->target_fd, entry->d_name);
}

static int clone_later(struct walk *walk, struct frame *frame)
{
	const char *name = (const char *)frame->later.bytes;
	const char *end = name + frame->later.length;
	int status = LS_OK;

	for (; name < end && status <= 0; name += strlen(name) + 1) {
		status = ls_clone_file(&walk->clone, dirfd(frame->source), frame->target_fd, name, 0);
		frame->changed |= status == LS_CLONE_CHANGED;
	}
	return status > 0 ? status : LS_OK;
}

/* Clone what is in the directory but for the directories, and note their names. */
static int read_entries(struct walk *walk, struct frame *frame)
{
	const struct dirent *entry;
	int status;

	frame->subdirectories.length = frame->later.length = frame->next = 0;
	while (errno = 0, (entry = readdir(frame->source))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		status = clone_entry(walk, frame, entry);
		if (status == LS_CLONE_LATER)
			status = add_name(walk, &frame->later, entry->d_name);
		if (status > 0)
			return status;
		frame->changed |= status == LS_CLONE_CHANGED;
	}
	return errno ? ls_clone_fail(&walk->clone, ".") : clone_later(walk, frame);
}

/* All in the directory is done: read it again where something changed, or leave it. */
static int leave(struct walk *walk, struct frame *frame)
{
	int status;

	if (frame->changed && ++frame->passes < LS_CLONE_PASSES) {
		frame->changed = 0;
		rewinddir(frame->source);
		return read_entries(walk, frame);
	}
	status = ls_clone_attributes(&walk->clone, dirfd(frame->source), frame->target_fd, &frame->status, ".");
	close_frame(frame);
	walk->depth--;
	return status;
}

static int step(struct walk *walk)
{
	struct frame *frame = &walk->frames[walk->depth - 1];
	const char *name;
	int status;

	if (frame->next == frame->subdirectories.length)
		return leave(walk, frame);
	name = (const char *)frame->subdirectories.bytes + frame->next;
	frame->next += strlen(name) + 1;
	status = enter(walk, dirfd(frame->source), name, frame->target_fd, name);
	if (status == LS_CLONE_CHANGED) {
		walk->frames[walk->depth - 1].changed = 1; /* the frames may have moved */
		return LS_OK;
	}
	return status ? status : read_entries(walk, &walk->frames[walk->depth - 1]);
}

static int walk_all(struct walk *walk, int source_fd)
{
	const struct ls_clone *clone = &walk->clone;
	int status = enter(walk, source_fd, clone->source, clone->target_fd, clone->target);

	if (!status)
		status = read_entries(walk, &walk->frames[0]);
	while (!status && walk->depth)
		status = step(walk);
	while (walk->depth)
		close_frame(&walk->frames[--walk->depth]);
	return status;
}

/* Take away the directory of links: its names, as the inodes have others. */
static int remove_links(struct ls_clone *clone)
{
	char path[PATH_MAX];
	DIR *directory;
	const struct dirent *entry;
	int failed = 0;

	if (clone->links_fd < 0)
		return LS_OK;
	directory = fdopendir(clone->links_fd);
	if (!directory) {
		close(clone->links_fd);
		return ls_clone_fail(clone, ".links");
	}
	while (!failed && (entry = readdir(directory)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			failed = unlinkat(clone->links_fd, entry->d_name, 0);
	closedir(directory);
	snprintf(path, sizeof(path), "%s.links", clone->target);
	if (failed || unlinkat(clone->target_fd, path, AT_REMOVEDIR))
		return ls_clone_fail(clone, ".links");
	return LS_OK;
}

int ls_clone_tree(int source_fd, const char *source, int target_fd, const char *target, struct ls_error *err)
{
	char *buffers = malloc(2 * LS_CLONE_XATTR_SIZE);
	struct walk walk = {.clone = {.source = source, .target_fd = target_fd, .target = target, .links_fd = -1}};
	struct ls_error later;
	int status;

	if (!buffers)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for the attributes of a file");
	walk.clone.names = buffers;
	walk.clone.value = buffers + LS_CLONE_XATTR_SIZE;
	walk.clone.err = err;
	status = walk_all(&walk, source_fd);
	if (status)
		walk.clone.err = &later;
	if (remove_links(&walk.clone) && !status)
		status = err ? err->status : LS_SYSTEM;
	free(walk.frames);
	free(buffers);
	return status;
}
