#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/files.h"
#include "base/whiteout.h"
#include "upper_walk.h"
#include "xattrs.h"

#define NAMES_BYTES 65536
/* Directories that are open at once; a deeper tree costs opening those above again, and not the process's descriptors. */
#define OPEN_DIRECTORIES 64
#define LEAST_OPEN 4
/* As many as a number of a place can tell. */
#define MOST_UPPERS 255
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

/* The record of the chain that shows through the item, a name of the directory on top, when it has this redirect;
 * LS_NONE where that leads nowhere. */
static int follow(const struct upper_walk *walk, const struct upper_item *item, const struct upper_redirect *redirect,
                  uint32_t *origin, struct ls_error *err)
{
	const char *text = redirect->text;
	size_t length = redirect->length;
	uint32_t above = upper_walk_top(walk)->origin;

	*origin = item->origin;
	if (!length || !walk->index)
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

/* ---- the uppers below ---- */

void upper_places_free(struct upper_places *places)
{
	for (size_t i = 0; i < places->count; i++) {
		if (places->at[i].fd >= 0)
			close(places->at[i].fd);
		free(places->at[i].path);
	}
	free(places->at);
	*places = (struct upper_places){0};
}

/* Takes over the descriptor and the path, whatever comes of it. */
static int add_place(struct upper_places *places, int fd, size_t layer, char *path, struct ls_error *err)
{
	struct upper_place *grown = realloc(places->at, (places->count + 1) * sizeof(*grown));

	if (grown)
		places->at = grown;
	if (!grown || (layer && !path)) {
		close(fd);
		free(path);
		return upper_out_of_memory(err);
	}
	places->at[places->count++] = (struct upper_place){.fd = fd, .layer = layer, .path = path};
	return LS_OK;
}

static char *path_below(const char *directory, const char *name)
{
	size_t length = directory ? strlen(directory) : 0;
	char *path = malloc(length + strlen(name) + 2);

	if (path)
		sprintf(path, "%s%s%s", length ? directory : "", length ? "/" : "", name);
	return path;
}

char *upper_walk_place_path(const struct upper_walk *walk, const struct upper_item *item)
{
	return path_below(upper_walk_top(walk)->places.at[item->place].path, item->name);
}

/* Without O_NOATIME the container would see that its files were read; only their owner may ask for it. */
static int open_at(int directory_fd, const char *name, int flags)
{
	int fd;

	flags |= O_RDONLY | O_NOFOLLOW | O_CLOEXEC;
	fd = openat(directory_fd, name, flags | O_NOATIME);
	return fd < 0 && errno == EPERM ? openat(directory_fd, name, flags) : fd;
}

/* A search through the uppers as ovl_lookup() of Linux, fs/overlayfs/namei.c, does it. */
struct search {
	const struct upper_walk *walk;
	int of_directory;
	struct upper_redirect *name; /* what the next upper is asked for */
	int is_renamed;              /* it is no longer the item's own name */
	int is_stopped;              /* nothing further down shows */
	int has_content;             /* what was found is a file with its content */
	struct upper_places *found;
};

int upper_walk_mark(const struct upper_walk *walk, int fd, const char *name, void *value, size_t capacity,
                    ssize_t *length, struct ls_error *err)
{
	*length = fgetxattr(fd, name, value, capacity);
	if (*length >= 0 || errno == ENODATA || errno == ERANGE || errno == EOPNOTSUPP)
		return LS_OK;
	return upper_walk_fail(walk, err);
}

static int read_opaque(const struct upper_walk *walk, int fd, int *is_opaque, struct ls_error *err)
{
	char value = 0;
	ssize_t length;
	int status = upper_walk_mark(walk, fd, LS_OVERLAY_OPAQUE, &value, sizeof(value), &length, err);

	*is_opaque = length == sizeof(value) && value == 'y';
	return status;
}

static int read_redirect(const struct upper_walk *walk, int fd, struct upper_redirect *redirect, struct ls_error *err)
{
	ssize_t length;
	int status =
	    upper_walk_mark(walk, fd, LS_OVERLAY_REDIRECT, redirect->text, sizeof(redirect->text), &length, err);

	redirect->length = length == UPPER_NO_MARK ? 0 : (size_t)length;
	return status;
}

/* A component of the name has a redirect; `after` bytes of the name follow the component, which has `length`. */
static int rename_to(struct search *search, const struct upper_redirect *redirect, size_t length, size_t after,
                     struct ls_error *err)
{
	struct upper_redirect *name = search->name;
	size_t before = redirect->text[0] == '/' ? 0 : name->length - after - length;

	if (before + redirect->length + after >= sizeof(name->text))
		return ls_fail(err, LS_LIMIT, "a directory of the container was moved from a path that is too long");
	memmove(name->text + before + redirect->length, name->text + name->length - after, after);
	memcpy(name->text + before, redirect->text, redirect->length);
	name->length = before + redirect->length + after;
	search->is_renamed = 1;
	return LS_OK;
}

/* Look at one component: *fd is what it is, -1 where there is nothing that counts. */
static int look_at(struct search *search, int directory_fd, const char *component, size_t after, int *fd,
                   struct ls_error *err)
{
	struct upper_redirect mark;
	struct stat status;
	ssize_t length;
	int result, is_directory, is_opaque = 0;

	*fd = -1;
	if (fstatat(directory_fd, component, &status, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT || errno == ENAMETOOLONG ? LS_OK : upper_walk_fail(search->walk, err);
	is_directory = S_ISDIR(status.st_mode);
	if (!is_directory && !(S_ISREG(status.st_mode) && !after && !search->of_directory))
		return search->is_stopped = 1, LS_OK;
	if (is_directory && !after && !search->of_directory)
		return search->is_stopped = 1, LS_OK;
	*fd = open_at(directory_fd, component, is_directory ? O_DIRECTORY : O_NONBLOCK);
	if (*fd < 0)
		return upper_walk_fail(search->walk, err);
	if (is_directory) {
		result = read_opaque(search->walk, *fd, &is_opaque, err);
		search->is_stopped |= is_opaque;
	} else {
		result = upper_walk_mark(search->walk, *fd, LS_OVERLAY_METACOPY, NULL, 0, &length, err);
		search->has_content = !result && length == UPPER_NO_MARK;
		search->is_stopped = search->has_content;
	}
	if (result || is_opaque || search->has_content)
		return result;
	result = read_redirect(search->walk, *fd, &mark, err);
	if (result || !mark.length)
		return result;
	/* What it was moved from shows also in a directory that is opaque. */
	search->is_stopped &= mark.text[0] != '/';
	return rename_to(search, &mark, strlen(component), after, err);
}

/* Look for the name in one upper, from the directory `place` of it; of an absolute name from its root. */
static int look_in(struct search *search, const struct upper_place *place, struct ls_error *err)
{
	char path[LS_INDEX_MAX_PATH_BYTES + 1], *at = path, *whole;
	int directory_fd = place->fd, fd = -1, status = LS_OK, is_file;

	if (search->name->length > LS_INDEX_MAX_PATH_BYTES)
		return LS_OK;
	memcpy(path, search->name->text, search->name->length);
	path[search->name->length] = '\0';
	at += strspn(at, "/");
	whole = path_below(place->path, at);
	while (*at && !status) {
		char *end = strchrnul(at, '/');
		size_t after = strlen(end);

		*end = '\0';
		status = look_at(search, directory_fd, at, after, &fd, err);
		if (directory_fd != place->fd)
			close(directory_fd);
		directory_fd = fd;
		if (fd < 0 || !after)
			break;
		at = end + 1;
	}
	is_file = !search->of_directory;
	if (status || fd < 0 || (is_file && !search->has_content)) {
		if (fd >= 0)
			close(fd);
		free(whole);
		return status;
	}
	return add_place(search->found, fd, place->layer, whole, err);
}

/* Search the uppers below the item's. */
static int search_below(struct search *search, const struct upper_item *item, struct ls_error *err)
{
	const struct upper_walk *walk = search->walk;
	const struct upper_places *places = &upper_walk_top(walk)->places, *roots = &walk->frames[0].places;
	size_t next = (size_t)item->place + 1, layer = upper_walk_layer(walk, item);
	int status = LS_OK;

	if (roots->count == 1)
		return LS_OK;
	if (!search->name->length) {
		memcpy(search->name->text, item->name, item->length);
		search->name->length = item->length;
	} else {
		search->is_renamed = 1;
	}
	while (!status && !search->is_stopped) {
		const struct upper_place *place;

		if (search->name->text[0] == '/') {
			if (++layer >= roots->count)
				break;
			place = &roots->at[layer];
		} else {
			if (next == places->count)
				break;
			place = &places->at[next++];
			layer = place->layer;
		}
		status = look_in(search, place, err);
	}
	if (!search->is_renamed)
		search->name->length = 0;
	return status;
}

int upper_walk_merge(const struct upper_walk *walk, const struct upper_item *item, int fd, int *is_opaque,
                     struct upper_redirect *redirect, struct upper_places *places, uint32_t *origin,
                     struct ls_error *err)
{
	struct search search = {.walk = walk, .of_directory = 1, .name = redirect, .is_stopped = *is_opaque};
	size_t layer = upper_walk_layer(walk, item);
	int status;

	*origin = LS_NONE;
	*places = (struct upper_places){0};
	search.found = places;
	status = add_place(places, fd, layer, layer ? upper_walk_place_path(walk, item) : NULL, err);
	if (!status)
		status = search_below(&search, item, err);
	*is_opaque = search.is_stopped;
	if (!status && !search.is_stopped)
		status = follow(walk, item, redirect, origin, err);
	if (!status && !upper_is_directory(walk, *origin))
		*origin = LS_NONE;
	if (status)
		upper_places_free(places);
	return status;
}

int upper_walk_merge_own(const struct upper_walk *walk, const struct upper_item *item, int fd, int *is_opaque,
                         struct upper_redirect *redirect, struct upper_places *places, uint32_t *origin,
                         struct ls_error *err)
{
	int status = read_opaque(walk, fd, is_opaque, err);

	redirect->length = 0;
	if (!status && !*is_opaque)
		status = read_redirect(walk, fd, redirect, err);
	if (!status)
		return upper_walk_merge(walk, item, fd, is_opaque, redirect, places, origin, err);
	close(fd);
	return status;
}

int upper_walk_content(const struct upper_walk *walk, const struct upper_item *item, struct upper_redirect *redirect,
                       struct upper_places *places, uint32_t *origin, struct ls_error *err)
{
	struct search search = {.walk = walk, .name = redirect, .found = places};
	int status;

	*origin = LS_NONE;
	*places = (struct upper_places){0};
	status = search_below(&search, item, err);
	if (!status && !search.is_stopped)
		status = follow(walk, item, redirect, origin, err);
	if (status)
		upper_places_free(places);
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

static int append_name(struct upper_frame *frame, size_t place, const struct dirent64 *entry, struct ls_error *err)
{
	const char *name = entry->d_name;
	char head[2] = {(char)place, (char)entry->d_type};
	int status;

	if (ls_is_dots(name, strlen(name)))
		return LS_OK;
	status = ls_buffer_append(&frame->names, head, sizeof(head), err);
	if (!status)
		status = ls_buffer_append(&frame->names, name, strlen(name) + 1, err);
	frame->count += !status;
	return status;
}

/* A directory that was removed meanwhile is empty. */
static int read_names(const struct upper_walk *walk, struct upper_frame *frame, size_t place, struct ls_error *err)
{
	int status = LS_OK;

	while (!status) {
		long length = syscall(SYS_getdents64, frame->places.at[place].fd, walk->names, NAMES_BYTES);

		if (length < 0 && errno != ENOENT)
			return upper_walk_fail(walk, err);
		if (length <= 0)
			return LS_OK;
		for (long at = 0; at < length && !status;) {
			const struct dirent64 *entry = (const struct dirent64 *)(walk->names + at);

			status = append_name(frame, place, entry, err);
			at += entry->d_reclen;
		}
	}
	return status;
}

int upper_walk_set_type(const struct upper_walk *walk, struct upper_item *item, struct ls_error *err)
{
	struct stat status;

	item->type = DT_WHT;
	if (fstatat(upper_walk_fd(walk, item), item->name, &status, AT_SYMLINK_NOFOLLOW))
		return ls_has_changed(errno) ? LS_OK : upper_walk_fail(walk, err);
	if (!ls_is_overlay_whiteout(status.st_mode, status.st_rdev))
		item->type = (uint8_t)IFTODT(status.st_mode);
	return LS_OK;
}

static int compare_by_place(const void *left, const void *right)
{
	int order = compare_by_name(left, right);

	return order ? order : ((const struct upper_item *)left)->place - ((const struct upper_item *)right)->place;
}

/* Of each name the topmost. */
static void drop_hidden(struct upper_frame *frame)
{
	size_t kept = 0;

	if (frame->places.count < 2)
		return;
	qsort(frame->items, frame->count, sizeof(*frame->items), compare_by_place);
	for (size_t i = 0; i < frame->count; i++)
		if (!i || compare_by_name(&frame->items[i], &frame->items[kept - 1]))
			frame->items[kept++] = frame->items[i];
	frame->count = kept;
}

/* The names of the upper directory as items. */
static int take_names(const struct upper_walk *walk, struct upper_frame *frame, struct ls_error *err)
{
	const char *at = (const char *)frame->names.bytes;
	int status = LS_OK;

	for (size_t i = 0; i < frame->count; i++) {
		struct upper_item *item = &frame->items[i];

		*item = (struct upper_item){.name = at + 2, .type = (uint8_t)at[1], .origin = LS_NONE, .base = LS_NONE};
		item->place = (uint8_t)at[0];
		item->length = (uint16_t)strlen(item->name);
		at += item->length + 3;
	}
	drop_hidden(frame);
	for (size_t i = 0; i < frame->count && !status; i++)
		if (frame->items[i].type == DT_CHR || frame->items[i].type == DT_UNKNOWN)
			status = upper_walk_set_type(walk, &frame->items[i], err);
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
	upper_places_free(&frame->places);
}

/* The root's descriptors stay open, as the others are found from them again. */
static int close_one(struct upper_walk *walk, struct ls_error *err)
{
	size_t most = walk->depth ? OPEN_DIRECTORIES / walk->frames[0].places.count : 0;
	struct upper_places *places;
	struct stat status;

	most = most > LEAST_OPEN ? most : LEAST_OPEN;
	if (walk->depth <= most)
		return LS_OK;
	places = &walk->frames[walk->depth - most].places;
	for (size_t i = 0; i < places->count && places->at[i].fd >= 0; i++) {
		struct upper_place *place = &places->at[i];

		if (fstat(place->fd, &status))
			return upper_walk_fail(walk, err);
		place->device = status.st_dev;
		place->inode = status.st_ino;
		close(place->fd);
		place->fd = -1;
	}
	return LS_OK;
}

int upper_walk_enter(struct upper_walk *walk, struct upper_places *places, uint32_t origin, uint32_t base,
                     struct ls_error *err)
{
	struct upper_frame *frame;
	int status = ls_array_reserve(&walk->frames, &walk->capacity, walk->depth + 1, sizeof(*frame),
	                              "directories that a container changed", err);

	if (!status && places->count)
		status = close_one(walk, err);
	if (status) {
		upper_places_free(places);
		return status;
	}
	frame = &walk->frames[walk->depth++];
	*frame =
	    (struct upper_frame){.places = *places, .origin = origin, .base = base, .path_length = walk->path_length};
	*places = (struct upper_places){0};
	for (size_t i = 0; i < frame->places.count && !status; i++)
		status = read_names(walk, frame, i, err);
	return status ? status : make_items(walk, frame, err);
}

static int open_again(struct upper_walk *walk, struct upper_place *place, struct ls_error *err)
{
	char path[LS_INDEX_MAX_PATH_BYTES + 1];
	struct stat status;

	memcpy(path, walk->path, walk->path_length);
	path[walk->path_length] = '\0';
	place->fd = ls_open_resolved(walk->frames[0].places.at[place->layer].fd, place->path ? place->path : path,
	                             O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
	                             RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH | RESOLVE_NO_XDEV, MAX_RACES);
	if (place->fd < 0 && errno == EAGAIN)
		return ls_fail_errno(err,
		                     "cannot open a container's \"/%s\" again, as something was renamed at each of %d "
		                     "tries; try again when less goes on",
		                     LS_SHOWN(walk->path, walk->path_length), MAX_RACES);
	if (place->fd < 0 || fstat(place->fd, &status))
		return upper_walk_fail(walk, err);
	if (status.st_dev == place->device && status.st_ino == place->inode)
		return LS_OK;
	errno = ESTALE;
	return upper_walk_fail(walk, err);
}

int upper_walk_leave(struct upper_walk *walk, struct ls_error *err)
{
	struct upper_frame *above;
	int status = LS_OK;

	free_frame(&walk->frames[--walk->depth]);
	if (!walk->depth)
		return LS_OK;
	above = upper_walk_top(walk);
	for (size_t i = 0; i < above->places.count && !status; i++) {
		if (above->places.at[i].fd >= 0)
			continue;
		walk->path_length = above->path_length;
		status = open_again(walk, &above->places.at[i], err);
	}
	return status;
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

int upper_walk_open(const struct upper_walk *walk, const struct upper_item *item, int flags)
{
	return open_at(upper_walk_fd(walk, item), item->name, flags);
}

int upper_walk_open_directory(const struct upper_walk *walk, const struct upper_item *item, int *fd,
                              struct ls_error *err)
{
	*fd = upper_walk_open(walk, item, O_DIRECTORY);
	if (*fd >= 0)
		return LS_OK;
	return ls_has_changed(errno) ? UPPER_CHANGED : upper_walk_fail(walk, err);
}

/* Other descriptors, as reading moves them. */
static int open_roots(const struct upper_walk *walk, const int *uppers, size_t count, struct upper_places *roots,
                      struct ls_error *err)
{
	for (size_t i = 0; i < count; i++) {
		int fd = openat(uppers[i], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		int status = fd < 0 ? upper_walk_fail(walk, err) : add_place(roots, fd, i, i ? strdup("") : NULL, err);

		if (status) {
			upper_places_free(roots);
			return status;
		}
	}
	return LS_OK;
}

int upper_walk_begin(struct upper_walk *walk, const struct ls_index *index, const int *uppers, size_t upper_count,
                     int by_path, struct ls_error *err)
{
	struct upper_places roots = {0};
	uint32_t root = index ? 0 : LS_NONE;
	int status;

	*walk = (struct upper_walk){.index = index, .by_path = by_path};
	if (index &&
	    (index->header->kind != LS_INDEX_CHAIN || !index->header->record_count || !S_ISDIR(index->records[0].mode)))
		return ls_fail(err, LS_INVALID,
		               "what a container changed is told of the index of a chain, not a layer");
	if (!upper_count || upper_count > MOST_UPPERS)
		return ls_fail(err, LS_INVALID, "%zu upper directories are no stack of 1 to %d", upper_count,
		               MOST_UPPERS);
	walk->names = malloc(NAMES_BYTES);
	if (!walk->names)
		return upper_out_of_memory(err);
	status = open_roots(walk, uppers, upper_count, &roots, err);
	return status ? status : upper_walk_enter(walk, &roots, root, root, err);
}

void upper_walk_end(struct upper_walk *walk)
{
	while (walk->depth)
		free_frame(&walk->frames[--walk->depth]);
	free(walk->frames);
	free(walk->names);
	*walk = (struct upper_walk){0};
}
