#include "join_trees.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/whiteout.h"
#include "clone_content.h"
#include "clone_entry.h"
#include "upper_walk.h"

/* Directories that are made and open at once, besides the root. */
#define OPEN_TARGETS 32

/* A directory that is made, one for each that the walk is in. */
struct target {
	int fd; /* -1 while too many are open */
	int is_opaque;
	struct upper_redirect *redirect; /* NULL: none */
};

/* A file that was made anew and has other names. */
struct made {
	dev_t device;
	ino_t inode;
	char path[];
};

struct join {
	struct upper_walk walk;
	struct ls_clone clone;
	struct target *targets;
	size_t depth, capacity;
	void *made;     /* of tsearch(3) */
	char *whiteout; /* one that was made, by its path */
};

static int fail(const struct join *join)
{
	return upper_walk_fail(&join->walk, join->clone.err);
}

static int target_fd(const struct join *join)
{
	return join->targets[join->depth - 1].fd;
}

static int push(struct join *join, int fd, int is_opaque, const struct upper_redirect *redirect)
{
	struct target target = {.fd = fd, .is_opaque = is_opaque};
	int status = ls_array_reserve(&join->targets, &join->capacity, join->depth + 1, sizeof(target),
	                              "directories of a tree, one in another", join->clone.err);

	if (!status && redirect->length) {
		target.redirect = malloc(sizeof(*redirect));
		if (target.redirect)
			*target.redirect = *redirect;
		else
			status = upper_out_of_memory(join->clone.err);
	}
	if (status) {
		close(fd);
		return status;
	}
	join->targets[join->depth++] = target;
	if (join->depth > OPEN_TARGETS + 1) {
		struct target *above = &join->targets[join->depth - 1 - OPEN_TARGETS];

		close(above->fd);
		above->fd = -1;
	}
	return LS_OK;
}

static void pop(struct join *join)
{
	struct target *target = &join->targets[--join->depth];

	if (target->fd >= 0)
		close(target->fd);
	free(target->redirect);
}

/* Have the directory in which the topmost is made be open again: nobody else changes what is made. */
static int open_parent(const struct join *join)
{
	struct target *parent = join->depth > 1 ? &join->targets[join->depth - 2] : NULL;

	if (!parent || parent->fd >= 0)
		return LS_OK;
	parent->fd = openat(target_fd(join), "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return parent->fd < 0 ? fail(join) : LS_OK;
}

/* ---- marks ---- */

/* Have an attribute be that, or not be there where `value` is NULL. */
static int set_mark(const struct join *join, int fd, const char *name, const void *value, size_t length)
{
	if (value ? !fsetxattr(fd, name, value, length, 0) : !fremovexattr(fd, name) || errno == ENODATA)
		return LS_OK;
	return errno == EOPNOTSUPP && !value ? LS_OK : fail(join);
}

/* ---- entries ---- */

static int compare_made(const void *left, const void *right)
{
	const struct made *a = left, *b = right;

	if (a->device != b->device)
		return a->device < b->device ? -1 : 1;
	return a->inode < b->inode ? -1 : a->inode > b->inode;
}

/* Whether an inode was made anew already, and has this name now, too. */
static int link_made(const struct join *join, const struct upper_item *item, const struct stat *status, int *is_linked)
{
	struct made key = {.device = status->st_dev, .inode = status->st_ino};
	struct made *const *found = status->st_nlink > 1 ? tfind(&key, &join->made, compare_made) : NULL;

	*is_linked = found != NULL;
	if (found && linkat(join->targets[0].fd, (*found)->path, target_fd(join), item->name, 0))
		return fail(join);
	return LS_OK;
}

static int remember(struct join *join, const struct stat *status)
{
	size_t length = join->walk.path_length;
	struct made *made;

	if (status->st_nlink < 2)
		return LS_OK;
	made = malloc(sizeof(*made) + length + 1);
	if (!made)
		return upper_out_of_memory(join->clone.err);
	*made = (struct made){.device = status->st_dev, .inode = status->st_ino};
	memcpy(made->path, join->walk.path, length);
	made->path[length] = '\0';
	if (tsearch(made, &join->made, compare_made))
		return LS_OK;
	free(made);
	return upper_out_of_memory(join->clone.err);
}

/* A name that hides what is below. Whiteouts are names of one inode, as the kernel's are. */
static int hide(struct join *join, const struct upper_item *item)
{
	if (join->whiteout) {
		if (!linkat(join->targets[0].fd, join->whiteout, target_fd(join), item->name, 0))
			return LS_OK;
		if (errno != EMLINK)
			return fail(join);
		free(join->whiteout);
		join->whiteout = NULL;
	}
	if (mknodat(target_fd(join), item->name, S_IFCHR, 0))
		return fail(join);
	join->whiteout = strndup(join->walk.path, join->walk.path_length);
	return join->whiteout ? LS_OK : upper_out_of_memory(join->clone.err);
}

/* Another name of what is no file; where that can have no more, something like it. */
static int take_special(struct join *join, const struct upper_item *item)
{
	int from = upper_walk_fd(&join->walk, item);
	struct stat status;
	int result;

	if (!linkat(from, item->name, target_fd(join), item->name, 0))
		return LS_OK;
	if (errno != EMLINK || fstatat(from, item->name, &status, AT_SYMLINK_NOFOLLOW))
		return fail(join);
	result = ls_clone_special_anew(&join->clone, from, target_fd(join), item->name, &status);
	return result == LS_CLONE_CHANGED ? fail(join) : result;
}

/* The attributes of a file, and the content of another, or none and where below the stack that is. */
static int fill(struct join *join, int source, int content, int made, const struct upper_redirect *redirect,
                const struct stat *status, const char *name)
{
	struct stat whole;
	int result;

	if (content < 0 ? ftruncate(made, status->st_size)
	                : fstat(content, &whole) || ls_clone_content(&join->clone, content, made, &whole))
		return fail(join);
	result = ls_clone_attributes(&join->clone, source, made, status, name);
	if (!result && content >= 0)
		result = set_mark(join, made, LS_OVERLAY_METACOPY, NULL, 0);
	if (!result)
		result = set_mark(join, made, LS_OVERLAY_REDIRECT,
		                  content < 0 && redirect->length ? redirect->text : NULL, redirect->length);
	return result;
}

static int make_anew(struct join *join, const struct upper_item *item, int source, int content,
                     const struct upper_redirect *redirect)
{
	struct stat status;
	int made, result, is_linked;

	if (fstat(source, &status))
		return fail(join);
	result = link_made(join, item, &status, &is_linked);
	if (result || is_linked)
		return result;
	made = openat(target_fd(join), item->name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (made < 0)
		return fail(join);
	result = fill(join, source, content, made, redirect, &status, item->name);
	close(made);
	return result ? result : remember(join, &status);
}

/* Another name of a file; where that can have no more, a file like it. */
static int link_file(struct join *join, const struct upper_item *item, int fd, int content,
                     const struct upper_redirect *redirect)
{
	if (!linkat(upper_walk_fd(&join->walk, item), item->name, target_fd(join), item->name, 0))
		return LS_OK;
	return errno == EMLINK ? make_anew(join, item, fd, content, redirect) : fail(join);
}

static int take_metacopy(struct join *join, const struct upper_item *item, int fd)
{
	struct upper_redirect own, redirect;
	struct upper_places places;
	uint32_t origin;
	ssize_t length;
	int status =
	    upper_walk_mark(&join->walk, fd, LS_OVERLAY_REDIRECT, own.text, sizeof(own.text), &length, join->clone.err);

	if (status)
		return status;
	own.length = length == UPPER_NO_MARK ? 0 : (size_t)length;
	redirect = own;
	status = upper_walk_content(&join->walk, item, &redirect, &places, &origin, join->clone.err);
	if (status)
		return status;
	if (places.count)
		status = make_anew(join, item, fd, places.at[0].fd, &redirect);
	else if (redirect.length != own.length || memcmp(redirect.text, own.text, own.length))
		status = make_anew(join, item, fd, -1, &redirect);
	else
		status = link_file(join, item, fd, -1, &own);
	upper_places_free(&places);
	return status;
}

static int take_file(struct join *join, const struct upper_item *item)
{
	const struct upper_redirect none = {.length = 0};
	int fd = upper_walk_open(&join->walk, item, O_NONBLOCK), status;
	ssize_t length;

	if (fd < 0)
		return fail(join);
	status = upper_walk_mark(&join->walk, fd, LS_OVERLAY_METACOPY, NULL, 0, &length, join->clone.err);
	if (!status)
		status = length == UPPER_NO_MARK ? link_file(join, item, fd, fd, &none) : take_metacopy(join, item, fd);
	close(fd);
	return status;
}

static int enter(struct join *join, const struct upper_item *item)
{
	struct upper_redirect redirect;
	struct upper_places places;
	uint32_t origin;
	int hides, made, fd, status = upper_walk_open_directory(&join->walk, item, &fd, join->clone.err);

	if (status)
		return status == UPPER_CHANGED ? fail(join) : status;
	status = upper_walk_merge_own(&join->walk, item, fd, &hides, &redirect, &places, &origin, join->clone.err);
	if (status)
		return status;
	made = mkdirat(target_fd(join), item->name, 0700)
	           ? -1
	           : openat(target_fd(join), item->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	status = made < 0 ? fail(join) : push(join, made, hides, &redirect);
	if (status) {
		upper_places_free(&places);
		return status;
	}
	return upper_walk_enter(&join->walk, &places, LS_NONE, LS_NONE, join->clone.err);
}

/* All is in a directory: it gets its own attributes, and what the stack says of what is below. */
static int leave(struct join *join)
{
	const struct target *target = &join->targets[join->depth - 1];
	int source = upper_walk_top(&join->walk)->places.at[0].fd;
	struct stat status;
	int result;

	if (fstat(source, &status))
		return fail(join);
	result = ls_clone_attributes(&join->clone, source, target->fd, &status, ".");
	if (!result)
		result = set_mark(join, target->fd, LS_OVERLAY_OPAQUE, target->is_opaque ? "y" : NULL, 1);
	if (!result && target->redirect && !target->is_opaque)
		result =
		    set_mark(join, target->fd, LS_OVERLAY_REDIRECT, target->redirect->text, target->redirect->length);
	else if (!result)
		result = set_mark(join, target->fd, LS_OVERLAY_REDIRECT, NULL, 0);
	if (!result)
		result = open_parent(join);
	pop(join);
	return result ? result : upper_walk_leave(&join->walk, join->clone.err);
}

static int step(struct join *join)
{
	struct upper_item *item;
	int status = upper_walk_next(&join->walk, &item, join->clone.err);

	if (status)
		return status;
	if (!item)
		return leave(join);
	switch (item->type) {
	case DT_DIR:
		return enter(join, item);
	case DT_REG:
		return take_file(join, item);
	case DT_WHT:
		return hide(join, item);
	default:
		return take_special(join, item);
	}
}

static int join_all(struct join *join, const int *uppers, size_t count, int target)
{
	struct upper_redirect none = {.length = 0};
	int status = upper_walk_begin(&join->walk, NULL, uppers, count, 0, join->clone.err);
	int fd;

	if (status)
		return status;
	fd = openat(target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	status = fd < 0 ? fail(join) : push(join, fd, 0, &none);
	while (!status && join->walk.depth)
		status = step(join);
	return status;
}

int ls_join_trees(const int *uppers, size_t count, int target_fd, int *has_copied, struct ls_error *err)
{
	struct ls_clone_shared shared = {.source = "frozen",
	                                 .target_fd = target_fd,
	                                 .target = ".",
	                                 .links_lock = PTHREAD_MUTEX_INITIALIZER,
	                                 .links_fd = -1};
	struct join join = {.clone = {.shared = &shared, .err = err}};
	int status;

	join.clone.names = malloc(2 * LS_XATTRS_BYTES);
	if (!join.clone.names)
		return upper_out_of_memory(err);
	join.clone.value = join.clone.names + LS_XATTRS_BYTES;
	status = join_all(&join, uppers, count, target_fd);
	while (join.depth)
		pop(&join);
	upper_walk_end(&join.walk);
	tdestroy(join.made, free);
	free(join.targets);
	free(join.whiteout);
	free(join.clone.names);
	*has_copied = atomic_load(&shared.has_copied);
	return status;
}
