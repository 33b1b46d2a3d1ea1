#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/files.h"
#include "base/whiteout.h"
#include "upper_walk.h"
#include "xattrs.h"

#define NAMES_BYTES 65536
/* Directories that are open at once; a deeper tree costs opening those above again, and not the process's descriptors. */
#define OPEN_DIRECTORIES 64
/* How often to look a path up that renames anywhere on the machine keep the kernel from being sure of. */
#define MAX_RACES 1024

int upper_walk_fail(const struct upper_walk *walk, struct ls_error *err)
{
	return ls_fail_errno(err, "cannot read what a container changed at \"/%s\"",
	                     LS_SHOWN(walk->path, walk->path_length));
}

int upper_out_of_memory(struct ls_error *err)
{
	return ls_fail(err, LS_NO_MEMORY, "out of memory for what a container changed");
}

/* ---- the chain ---- */

/* A literal 0:0 character device of an image is not in the tree that is mounted (csrc/erofs/erofs.h). */
static uint32_t shown_record(const struct upper_walk *walk, uint32_t number)
{
	const struct ls_record *record = &walk->index->records[number];

	return ls_is_overlay_whiteout(record->mode, record->size) ? LS_NONE : number;
}

/* The record of a name, or a path, in a directory of the chain. */
static int look_up(const struct upper_walk *walk, uint32_t directory, const char *name, size_t length, uint32_t *found,
                   struct ls_error *err)
{
	int status = ls_index_lookup_below(walk->index, directory, name, length, found, err);

	if (!status && *found != LS_NONE)
		*found = shown_record(walk, *found);
	return status;
}

int upper_walk_follow(const struct upper_walk *walk, const struct upper_item *item,
                      const struct upper_redirect *redirect, uint32_t *origin, struct ls_error *err)
{
	const char *text = redirect->text;
	size_t length = redirect->length;
	uint32_t above = upper_walk_top(walk)->origin;

	*origin = item->origin;
	if (!length)
		return LS_OK;
	*origin = LS_NONE;
	/* An absolute redirect counts from the root, another one replaces the last component (overlayfs.rst). */
	if (text[0] != '/')
		return above == LS_NONE ? LS_OK : look_up(walk, above, text, length, origin, err);
	while (length && text[0] == '/') {
		text++;
		length--;
	}
	return look_up(walk, 0, text, length, origin, err);
}

int upper_walk_origin(const struct upper_walk *walk, const struct upper_item *item, int is_opaque,
                      const struct upper_redirect *redirect, uint32_t *origin, struct ls_error *err)
{
	int status;

	*origin = LS_NONE;
	if (is_opaque)
		return LS_OK;
	status = upper_walk_follow(walk, item, redirect, origin, err);
	if (!status && !upper_is_directory(walk, *origin))
		*origin = LS_NONE;
	return status;
}

/* ---- the items of a directory ---- */

static int compare_by_name(const void *left, const void *right)
{
	const struct upper_item *a = left, *b = right;

	return ls_compare(a->name, a->length, b->name, b->length);
}

/* The byte of a name at `at`, behind that of an inside its '/'; -1 at the end. */
static int byte_at(const struct upper_item *item, size_t at)
{
	if (at < item->length)
		return (unsigned char)item->name[at];
	return item->is_inside && at == item->length ? '/' : -1;
}

/* By whole paths. What is in a directory "d" stands where "d/" would: all its paths begin so, and no other's do. */
static int compare_by_path(const void *left, const void *right)
{
	const struct upper_item *a = left, *b = right;
	size_t shorter = a->length < b->length ? a->length : b->length;
	int order = memcmp(a->name, b->name, shorter);

	for (size_t at = shorter; !order && at <= shorter + 1; at++)
		order = byte_at(a, at) - byte_at(b, at);
	return order;
}

static int append_name(struct upper_frame *frame, const struct dirent64 *entry, struct ls_error *err)
{
	const char *name = entry->d_name;
	int status;

	if (ls_is_dots(name, strlen(name)))
		return LS_OK;
	status = ls_buffer_append(&frame->names, &entry->d_type, 1, err);
	if (!status)
		status = ls_buffer_append(&frame->names, name, strlen(name) + 1, err);
	frame->count += !status;
	return status;
}

/* A directory that was removed meanwhile is empty. */
static int read_names(const struct upper_walk *walk, struct upper_frame *frame, struct ls_error *err)
{
	int status = LS_OK;

	while (!status) {
		long length = syscall(SYS_getdents64, frame->fd, walk->names, NAMES_BYTES);

		if (length < 0 && errno != ENOENT)
			return upper_walk_fail(walk, err);
		if (length <= 0)
			return LS_OK;
		for (long at = 0; at < length && !status;) {
			const struct dirent64 *entry = (const struct dirent64 *)(walk->names + at);

			status = append_name(frame, entry, err);
			at += entry->d_reclen;
		}
	}
	return status;
}

int upper_walk_set_type(const struct upper_walk *walk, struct upper_item *item, struct ls_error *err)
{
	struct stat status;

	item->type = DT_WHT;
	if (fstatat(upper_walk_top(walk)->fd, item->name, &status, AT_SYMLINK_NOFOLLOW))
		return ls_has_changed(errno) ? LS_OK : upper_walk_fail(walk, err);
	if (!ls_is_overlay_whiteout(status.st_mode, status.st_rdev))
		item->type = (uint8_t)IFTODT(status.st_mode);
	return LS_OK;
}

/* The names of the upper directory as items. */
static int take_names(const struct upper_walk *walk, struct upper_frame *frame, struct ls_error *err)
{
	const char *at = (const char *)frame->names.bytes;
	int status = LS_OK;

	for (size_t i = 0; i < frame->count && !status; i++) {
		struct upper_item *item = &frame->items[i];

		*item = (struct upper_item){.name = at + 1, .type = (uint8_t)at[0], .origin = LS_NONE, .base = LS_NONE};
		item->length = (uint16_t)strlen(item->name);
		at += item->length + 2;
		if (item->type == DT_CHR || item->type == DT_UNKNOWN)
			status = upper_walk_set_type(walk, item, err);
	}
	return status;
}

/* Find what the chain has by the names of the upper directory, which is merged with it. */
static int look_up_names(const struct upper_walk *walk, struct upper_frame *frame, struct ls_error *err)
{
	int status = LS_OK;

	if (frame->base == LS_NONE || !walk->index->records[frame->base].count)
		return LS_OK;
	for (size_t i = 0; i < frame->count && !status; i++) {
		struct upper_item *item = &frame->items[i];

		status = look_up(walk, frame->base, item->name, item->length, &item->base, err);
		item->origin = item->base;
	}
	return status;
}

enum side { ORIGIN, BASE };

/* Have the children of a directory of the chain among the items, the first `sorted` of which are ordered by name. */
static int add_children(const struct upper_walk *walk, struct upper_frame *frame, enum side side, size_t sorted,
                        uint32_t first, uint32_t count, struct ls_error *err)
{
	for (uint32_t number = first; number < first + count; number++) {
		struct upper_item own = {.type = UPPER_ABSENT, .origin = LS_NONE, .base = LS_NONE}, *item;
		size_t length = 0;
		int status = ls_index_name(walk->index, &walk->index->records[number], &own.name, &length, err);

		if (status)
			return status;
		if (shown_record(walk, number) == LS_NONE)
			continue;
		own.length = (uint16_t)length;
		item = bsearch(&own, frame->items, sorted, sizeof(own), compare_by_name);
		if (!item) {
			item = &frame->items[frame->count++];
			*item = own;
		}
		*(side == ORIGIN ? &item->origin : &item->base) = number;
	}
	return LS_OK;
}

struct children {
	uint32_t first, count;
};

static int find_children(const struct upper_walk *walk, uint32_t directory, struct children *children,
                         struct ls_error *err)
{
	*children = (struct children){0};
	if (directory == LS_NONE)
		return LS_OK;
	return ls_index_children(walk->index, directory, &children->first, &children->count, err);
}

/* Of what the upper directory has, only directories are gone into, and of the chain's only those that show here. */
static void add_insides(const struct upper_walk *walk, struct upper_frame *frame)
{
	size_t count = frame->count;

	for (size_t i = 0; i < count; i++) {
		struct upper_item inside = frame->items[i];

		inside.is_inside = 1;
		if (inside.type == DT_DIR || (inside.type == UPPER_ABSENT && upper_is_directory(walk, inside.origin)))
			frame->items[frame->count++] = inside;
	}
}

static int merge_children(const struct upper_walk *walk, struct upper_frame *frame, const struct children *origin,
                          const struct children *base, struct ls_error *err)
{
	int status;

	qsort(frame->items, frame->count, sizeof(*frame->items), compare_by_name);
	status = add_children(walk, frame, ORIGIN, frame->count, origin->first, origin->count, err);
	if (status)
		return status;
	qsort(frame->items, frame->count, sizeof(*frame->items), compare_by_name);
	return add_children(walk, frame, BASE, frame->count, base->first, base->count, err);
}

static int make_items(const struct upper_walk *walk, struct upper_frame *frame, struct ls_error *err)
{
	struct children origin = {0}, base = {0};
	int is_merged = frame->origin == frame->base;
	size_t most;
	int status = LS_OK;

	if (!is_merged)
		status = find_children(walk, frame->origin, &origin, err);
	if (!status && !is_merged)
		status = find_children(walk, frame->base, &base, err);
	if (status)
		return status;
	most = (frame->count + origin.count + base.count) * (walk->by_path ? 2 : 1);
	frame->items = calloc(most + 1, sizeof(*frame->items));
	if (!frame->items)
		return upper_out_of_memory(err);
	status = take_names(walk, frame, err);
	if (!status)
		status = is_merged ? look_up_names(walk, frame, err) : merge_children(walk, frame, &origin, &base, err);
	if (status)
		return status;
	if (walk->by_path)
		add_insides(walk, frame);
	qsort(frame->items, frame->count, sizeof(*frame->items), walk->by_path ? compare_by_path : compare_by_name);
	return LS_OK;
}

/* ---- going down and up ---- */

static void free_frame(struct upper_frame *frame)
{
	free(frame->items);
	ls_buffer_free(&frame->names);
	if (frame->fd >= 0)
		close(frame->fd);
}

/* The root's descriptor stays open, as the others are found from it again. */
static int close_one(struct upper_walk *walk, struct ls_error *err)
{
	struct upper_frame *frame;
	struct stat status;

	if (walk->depth <= OPEN_DIRECTORIES)
		return LS_OK;
	frame = &walk->frames[walk->depth - OPEN_DIRECTORIES];
	if (frame->fd < 0)
		return LS_OK;
	if (fstat(frame->fd, &status))
		return upper_walk_fail(walk, err);
	frame->device = status.st_dev;
	frame->inode = status.st_ino;
	close(frame->fd);
	frame->fd = -1;
	return LS_OK;
}

int upper_walk_enter(struct upper_walk *walk, int fd, uint32_t origin, uint32_t base, struct ls_error *err)
{
	struct upper_frame *frame;
	int status = ls_array_reserve(&walk->frames, &walk->capacity, walk->depth + 1, sizeof(*frame),
	                              "directories that a container changed", err);

	if (!status && fd >= 0)
		status = close_one(walk, err);
	if (status) {
		if (fd >= 0)
			close(fd);
		return status;
	}
	frame = &walk->frames[walk->depth++];
	*frame = (struct upper_frame){
	    .in_upper = fd >= 0, .fd = fd, .origin = origin, .base = base, .path_length = walk->path_length};
	if (fd >= 0)
		status = read_names(walk, frame, err);
	return status ? status : make_items(walk, frame, err);
}

static int open_again(struct upper_walk *walk, struct upper_frame *frame, struct ls_error *err)
{
	char path[LS_INDEX_MAX_PATH_BYTES + 1];
	struct stat status;

	walk->path_length = frame->path_length;
	memcpy(path, walk->path, frame->path_length);
	path[frame->path_length] = '\0';
	frame->fd = ls_open_resolved(walk->frames[0].fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
	                             RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH | RESOLVE_NO_XDEV, MAX_RACES);
	if (frame->fd < 0 && errno == EAGAIN)
		return ls_fail_errno(err,
		                     "cannot open a container's \"/%s\" again, as something was renamed at each of %d "
		                     "tries; try again when less goes on",
		                     LS_SHOWN(walk->path, walk->path_length), MAX_RACES);
	if (frame->fd < 0 || fstat(frame->fd, &status))
		return upper_walk_fail(walk, err);
	if (status.st_dev == frame->device && status.st_ino == frame->inode)
		return LS_OK;
	errno = ESTALE;
	return upper_walk_fail(walk, err);
}

int upper_walk_leave(struct upper_walk *walk, struct ls_error *err)
{
	struct upper_frame *above;

	free_frame(&walk->frames[--walk->depth]);
	if (!walk->depth)
		return LS_OK;
	above = upper_walk_top(walk);
	return above->in_upper && above->fd < 0 ? open_again(walk, above, err) : LS_OK;
}

int upper_walk_next(struct upper_walk *walk, struct upper_item **item, struct ls_error *err)
{
	struct upper_frame *frame = upper_walk_top(walk);
	size_t used = frame->path_length;

	*item = NULL;
	if (frame->next == frame->count)
		return LS_OK;
	*item = &frame->items[frame->next++];
	if (used + (used > 0) + (*item)->length > sizeof(walk->path))
		return ls_fail(err, LS_LIMIT,
		               "a path of the container has more than %zu bytes, which a layer cannot hold: \"/%s\"",
		               sizeof(walk->path), LS_SHOWN(walk->path, used));
	if (used)
		walk->path[used++] = '/';
	memcpy(walk->path + used, (*item)->name, (*item)->length);
	walk->path_length = used + (*item)->length;
	return LS_OK;
}

/* Without O_NOATIME the container would see that its files were read; only their owner may ask for it. */
int upper_walk_open(const struct upper_walk *walk, const struct upper_item *item, int flags)
{
	int directory_fd = upper_walk_top(walk)->fd, fd;

	flags |= O_RDONLY | O_NOFOLLOW | O_CLOEXEC;
	fd = openat(directory_fd, item->name, flags | O_NOATIME);
	return fd < 0 && errno == EPERM ? openat(directory_fd, item->name, flags) : fd;
}

int upper_walk_open_directory(const struct upper_walk *walk, const struct upper_item *item, int *fd,
                              struct ls_error *err)
{
	*fd = upper_walk_open(walk, item, O_DIRECTORY);
	if (*fd >= 0)
		return LS_OK;
	return ls_has_changed(errno) ? UPPER_CHANGED : upper_walk_fail(walk, err);
}

int upper_walk_begin(struct upper_walk *walk, const struct ls_index *index, int upper_fd, int by_path,
                     struct ls_error *err)
{
	int fd;

	*walk = (struct upper_walk){.index = index, .by_path = by_path};
	if (index->header->kind != LS_INDEX_CHAIN || !index->header->record_count || !S_ISDIR(index->records[0].mode))
		return ls_fail(err, LS_INVALID,
		               "what a container changed is told of the index of a chain, not a layer");
	walk->names = malloc(NAMES_BYTES);
	if (!walk->names)
		return upper_out_of_memory(err);
	/* Another descriptor, as reading moves it. */
	fd = openat(upper_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return upper_walk_fail(walk, err);
	return upper_walk_enter(walk, fd, 0, 0, err);
}

void upper_walk_end(struct upper_walk *walk)
{
	while (walk->depth)
		free_frame(&walk->frames[--walk->depth]);
	free(walk->frames);
	free(walk->names);
	*walk = (struct upper_walk){0};
}
