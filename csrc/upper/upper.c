#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/retry.h"
#include "base/table.h"
#include "hash/siphash.h"
#include "upper.h"
#include "upper_attributes.h"
#include "upper_names.h"
#include "upper_walk.h"

#define BATCH_BYTES ((size_t)1 << 20)
#define BATCH_ENTRIES 4096
/* How often an item is looked at again because it has become something else. */
#define ROUNDS 8
/* In place of a device: what has it is an inode of the chain, named by the number of its record. */
#define OF_CHAIN UINT64_MAX

/* The first name of an inode that has several. */
struct first_name {
	uint64_t device, inode;
	struct ls_bytes path;
};

struct ls_upper {
	struct upper_walk walk;
	struct upper_reader reader;
	struct upper_attributes attributes; /* of the item that is being taken */
	int with_contents;
	size_t whole_bytes;

	struct ls_arena arena; /* what the batch points to */
	struct ls_upper_entry *entries;
	size_t count, capacity;
	size_t bytes; /* of contents */
	int is_full, has_begun;

	struct ls_arena names; /* the paths of `first` */
	struct first_name *first;
	size_t first_capacity;
	struct ls_table first_numbers; /* of `first`, by device and inode */
	struct upper_names several;
};

/* ---- inodes with several names ---- */

/* Whether a first name is of the inode of the one that stands behind the last. */
static int is_same_inode(const void *upper, uint32_t number)
{
	const struct ls_upper *u = upper;
	const struct first_name *a = &u->first[number], *b = &u->first[u->first_numbers.count];

	return a->device == b->device && a->inode == b->inode;
}

/* The name under which the inode came before, nothing where this is the first. */
static int find_first_name(struct ls_upper *upper, uint64_t device, uint64_t inode, struct ls_bytes *name,
                           struct ls_error *err)
{
	const struct upper_walk *walk = &upper->walk;
	uint64_t key[2] = {device, inode}, hash = ls_siphash13(walk->index->header->hash_key, key, sizeof(key));
	uint32_t number, known = upper->first_numbers.count;
	int status = ls_array_reserve(&upper->first, &upper->first_capacity, (size_t)known + 1, sizeof(*upper->first),
	                              "inodes with several names", err);

	*name = (struct ls_bytes){0};
	if (status)
		return status;
	upper->first[known] = (struct first_name){.device = device, .inode = inode};
	status = ls_table_number(&upper->first_numbers, (uint32_t)hash, is_same_inode, upper, &number, err);
	if (status)
		return status;
	if (number < known) {
		*name = upper->first[number].path;
		return LS_OK;
	}
	upper->first[known].path.bytes = ls_arena_copy(&upper->names, walk->path, walk->path_length);
	upper->first[known].path.length = walk->path_length;
	return upper->first[known].path.bytes ? LS_OK : upper_out_of_memory(err);
}

/* ---- the batch ---- */

/* Have the entry in the batch, its path the first bytes of the walk's. */
static int add(struct ls_upper *upper, struct ls_upper_entry *entry, size_t path_length, struct ls_error *err)
{
	void *path = ls_arena_copy(&upper->arena, upper->walk.path, path_length);
	int status = ls_array_reserve(&upper->entries, &upper->capacity, upper->count + 1, sizeof(*upper->entries),
	                              "entries of what a container changed", err);

	if (status)
		return status;
	if (!path)
		return upper_out_of_memory(err);
	entry->path = (struct ls_bytes){path, path_length};
	upper->entries[upper->count++] = *entry;
	upper->is_full |= upper->count >= BATCH_ENTRIES || upper->bytes >= BATCH_BYTES;
	return LS_OK;
}

/* The directories on the way are entries, too, as the chain has them. */
static int add_pending(struct ls_upper *upper, struct ls_error *err)
{
	struct upper_walk *walk = &upper->walk;
	size_t last = walk->depth;

	while (last && walk->frames[last - 1].is_pending)
		last--;
	for (; last < walk->depth; last++) {
		struct upper_frame *frame = &walk->frames[last];
		struct ls_upper_entry entry;
		int status = upper_describe_record(&upper->reader, frame->base, &entry, err);

		if (!status)
			status = add(upper, &entry, frame->path_length, err);
		if (status)
			return status;
		frame->is_pending = 0;
	}
	return LS_OK;
}

static int emit(struct ls_upper *upper, struct ls_upper_entry *entry, struct ls_error *err)
{
	int status = add_pending(upper, err);

	return status ? status : add(upper, entry, upper->walk.path_length, err);
}

/* ---- what the upper directory has ---- */

static struct ls_upper_entry describe(const struct upper_attributes *attributes)
{
	const struct stat *status = &attributes->status;
	int is_device = S_ISCHR(status->st_mode) || S_ISBLK(status->st_mode);

	return (struct ls_upper_entry){
	    .mode = status->st_mode,
	    .uid = status->st_uid,
	    .gid = status->st_gid,
	    .mtime_seconds = status->st_mtim.tv_sec,
	    .mtime_nanoseconds = (uint32_t)status->st_mtim.tv_nsec,
	    .device_major = is_device ? major(status->st_rdev) : 0,
	    .device_minor = is_device ? minor(status->st_rdev) : 0,
	    .target = attributes->target,
	    .xattrs = attributes->xattrs,
	    .xattr_count = attributes->xattr_count,
	    .size = S_ISREG(status->st_mode) ? (uint64_t)status->st_size : 0,
	    .lower = LS_NONE,
	    .device = status->st_dev,
	    .inode = status->st_ino,
	    .fd = -1,
	};
}

/* Nothing is at the item's path. */
static int take_nothing(struct ls_upper *upper, const struct upper_item *item, struct ls_error *err)
{
	struct ls_upper_entry whiteout = {.lower = LS_NONE, .fd = -1};

	return item->base == LS_NONE ? LS_OK : emit(upper, &whiteout, err);
}

/* An inode with several names is an entry even if it is as in the chain: the others are links to it. */
static int find_link(struct ls_upper *upper, struct ls_upper_entry *entry, struct ls_error *err)
{
	if (upper->attributes.status.st_nlink < 2)
		return LS_OK;
	return find_first_name(upper, entry->device, entry->inode, &entry->link, err);
}

/* Whether an item that has one name is what the chain has at its path, contents apart. */
static int is_unchanged(struct ls_upper *upper, const struct upper_item *item, int *unchanged, struct ls_error *err)
{
	const struct stat *own = &upper->attributes.status;
	int has_several = 0, status;

	*unchanged = 0;
	if (item->base == LS_NONE)
		return LS_OK;
	status = upper_is_record(&upper->reader, &upper->attributes, item->base, unchanged, err);
	if (!status && *unchanged && own->st_nlink > 1)
		status = upper_names_several(&upper->several, &upper->walk, own, &has_several, err);
	*unchanged &= !has_several;
	return status;
}

/* A directory is an entry where it is not the chain's with the chain's attributes. One that replaces it is opaque, and
 * all that is in it an entry. */
static int enter_directory(struct ls_upper *upper, const struct upper_item *item, int fd, struct ls_error *err)
{
	struct upper_walk *walk = &upper->walk;
	struct upper_attributes *attributes = &upper->attributes;
	struct ls_upper_entry entry = describe(attributes);
	struct upper_places places;
	uint32_t origin;
	int is_pending = 0, is_merged;
	int status =
	    upper_walk_merge(walk, item, fd, &attributes->is_opaque, &attributes->redirect, &places, &origin, err);

	if (status)
		return status;
	is_merged = origin != LS_NONE && origin == item->base;
	if (is_merged)
		status = upper_is_record(&upper->reader, attributes, origin, &is_pending, err);
	if (!status && !is_pending) {
		entry.is_opaque = !is_merged && upper_is_directory(walk, item->base);
		status = emit(upper, &entry, err);
	}
	if (status) {
		upper_places_free(&places);
		return status;
	}
	status = upper_walk_enter(walk, &places, origin, is_merged ? origin : LS_NONE, err);
	if (!status)
		upper_walk_top(walk)->is_pending = is_pending;
	return status;
}

static int take_directory(struct ls_upper *upper, const struct upper_item *item, struct ls_error *err)
{
	int fd = -1, status = upper_walk_open_directory(&upper->walk, item, &fd, err);

	if (status)
		return status;
	status = upper_read_attributes(&upper->reader, fd, &upper->attributes, err);
	if (status) {
		close(fd);
		return status;
	}
	return enter_directory(upper, item, fd, err);
}

static int take_special(struct ls_upper *upper, const struct upper_item *item, struct ls_error *err)
{
	struct ls_upper_entry entry;
	int unchanged = 0, status = upper_read_special(&upper->reader, item, &upper->attributes, err);

	if (!status)
		status = is_unchanged(upper, item, &unchanged, err);
	if (status || unchanged)
		return status;
	entry = describe(&upper->attributes);
	status = find_link(upper, &entry, err);
	return status ? status : emit(upper, &entry, err);
}

/* ---- regular files ---- */

/* Hand the file over, to be read by whoever takes the entry. */
static int hand_over(struct ls_upper *upper, struct ls_upper_entry *entry, int *fd, struct ls_error *err)
{
	struct stat status;

	if (fstat(*fd, &status))
		return upper_walk_fail(&upper->walk, err);
	entry->size = (uint64_t)status.st_size;
	entry->fd = *fd;
	*fd = -1;
	upper->is_full = 1;
	return LS_OK;
}

/* Room for `capacity` bytes, in the first of which are those that were read so far. */
static uint8_t *make_room(struct ls_upper *upper, const uint8_t *read, size_t used, size_t capacity)
{
	uint8_t *bytes = ls_arena_take(&upper->arena, capacity);

	if (bytes && used)
		memcpy(bytes, read, used);
	return bytes;
}

/* Read the content; its size becomes what was read. A file that has grown beyond what is read is handed over. */
static int read_content(struct ls_upper *upper, struct ls_upper_entry *entry, int *fd, struct ls_error *err)
{
	size_t capacity = entry->size + 1, used = 0;
	uint8_t *bytes = make_room(upper, NULL, 0, capacity);

	while (bytes) {
		ssize_t got = TEMP_FAILURE_RETRY(pread(*fd, bytes + used, capacity - used, (off_t)used));

		if (got < 0)
			return upper_walk_fail(&upper->walk, err);
		used += (size_t)got;
		if (!got || used == entry->size)
			break;
		if (used < capacity)
			continue;
		if (capacity > upper->whole_bytes)
			return hand_over(upper, entry, fd, err);
		capacity = upper->whole_bytes + 1;
		bytes = make_room(upper, bytes, used, capacity);
	}
	if (!bytes)
		return upper_out_of_memory(err);
	entry->size = used;
	entry->bytes = (struct ls_bytes){bytes, used};
	upper->bytes += used;
	return LS_OK;
}

static int take_content(struct ls_upper *upper, struct ls_upper_entry *entry, int *fd, struct ls_error *err)
{
	if (!upper->with_contents || entry->link.length || !entry->size)
		return LS_OK;
	if (entry->lower != LS_NONE) {
		upper->bytes += entry->size;
		upper->is_full |= entry->size > upper->whole_bytes;
		return LS_OK;
	}
	return entry->size > upper->whole_bytes ? hand_over(upper, entry, fd, err)
	                                        : read_content(upper, entry, fd, err);
}

static int fail_metacopy(const struct ls_upper *upper, struct ls_error *err)
{
	const struct upper_redirect *redirect = &upper->attributes.redirect;

	return ls_fail(err, LS_CORRUPT,
	               "the container's \"/%s\" has the content of a file of the image (trusted.overlay.metacopy, "
	               "redirect \"%s\") that the image does not have; its upper directory is damaged",
	               LS_SHOWN(upper->walk.path, upper->walk.path_length), LS_SHOWN(redirect->text, redirect->length));
}

/* The content is in the file that the descriptor is of, in an upper at `path`, which is freed here. */
static int say_where(struct ls_upper *upper, struct ls_upper_entry *entry, int fd, size_t layer, char *path,
                     struct ls_error *err)
{
	struct ls_bytes *own = &entry->content.path;
	struct stat status;

	entry->content.layer = layer;
	if (layer && path) {
		own->length = strlen(path);
		own->bytes = ls_arena_copy(&upper->arena, path, own->length);
	}
	free(path);
	if (layer && !own->bytes)
		return upper_out_of_memory(err);
	if (fstat(fd, &status))
		return upper_walk_fail(&upper->walk, err);
	entry->content.device = status.st_dev;
	entry->content.inode = status.st_ino;
	entry->size = (uint64_t)status.st_size;
	return LS_OK;
}

/* Of a file whose attributes alone are in the upper directory, find what has its content: a file of an upper below, which
 * *fd becomes, or a record. */
static int find_lower(struct ls_upper *upper, const struct upper_item *item, struct ls_upper_entry *entry, int *fd,
                      struct ls_error *err)
{
	const struct ls_record *records = upper->walk.index->records;
	struct upper_places places;
	size_t layer = upper_walk_layer(&upper->walk, item);
	int status;

	if (!upper->attributes.is_metacopy)
		return say_where(upper, entry, *fd, layer, layer ? upper_walk_place_path(&upper->walk, item) : NULL,
		                 err);
	status = upper_walk_content(&upper->walk, item, &upper->attributes.redirect, &places, &entry->lower, err);
	if (status)
		return status;
	if (places.count) {
		close(*fd);
		*fd = places.at[0].fd;
		places.at[0].fd = -1;
		status = say_where(upper, entry, *fd, places.at[0].layer, places.at[0].path, err);
		places.at[0].path = NULL;
		upper_places_free(&places);
		return status;
	}
	if (entry->lower == LS_NONE || !S_ISREG(records[entry->lower].mode))
		return fail_metacopy(upper, err);
	entry->size = records[entry->lower].size;
	return LS_OK;
}

static int has_content(const struct ls_upper *upper, const struct upper_item *item, const struct ls_upper_entry *entry,
                       int fd, int *same, struct ls_error *err)
{
	*same = entry->lower == item->base;
	if (entry->lower != LS_NONE)
		return LS_OK;
	return upper_has_content(&upper->reader, fd, entry->size, item->base, same, err);
}

static int take_opened(struct ls_upper *upper, const struct upper_item *item, int *fd, struct ls_error *err)
{
	struct ls_upper_entry entry;
	int unchanged = 0, status = upper_read_attributes(&upper->reader, *fd, &upper->attributes, err);

	if (!status && !S_ISREG(upper->attributes.status.st_mode))
		return UPPER_CHANGED;
	if (status)
		return status;
	entry = describe(&upper->attributes);
	status = find_lower(upper, item, &entry, fd, err);
	if (!status)
		status = is_unchanged(upper, item, &unchanged, err);
	if (!status && unchanged)
		status = has_content(upper, item, &entry, *fd, &unchanged, err);
	if (status || unchanged)
		return status;
	status = find_link(upper, &entry, err);
	/* The directories before it first: its content may fill the batch. */
	if (!status)
		status = add_pending(upper, err);
	if (!status)
		status = take_content(upper, &entry, fd, err);
	if (status)
		return status;
	status = emit(upper, &entry, err);
	if (status && entry.fd >= 0)
		close(entry.fd);
	return status;
}

static int take_file(struct ls_upper *upper, const struct upper_item *item, struct ls_error *err)
{
	/* O_NONBLOCK: should it have become a fifo. */
	int fd = upper_walk_open(&upper->walk, item, O_NONBLOCK), status;

	if (fd < 0)
		return ls_has_changed(errno) ? UPPER_CHANGED : upper_walk_fail(&upper->walk, err);
	status = take_opened(upper, item, &fd, err);
	if (fd >= 0)
		close(fd);
	return status;
}

/* ---- what the chain alone has, under a directory that was moved ---- */

static int take_from_chain(struct ls_upper *upper, const struct upper_item *item, struct ls_error *err)
{
	struct upper_walk *walk = &upper->walk;
	const struct ls_record *record = &walk->index->records[item->origin];
	int closed = -1, is_directory = S_ISDIR(record->mode);
	struct upper_places none = {0};
	struct ls_upper_entry entry;
	int status;

	if (S_ISSOCK(record->mode))
		return LS_OK;
	status = upper_describe_record(&upper->reader, item->origin, &entry, err);
	if (!status && !is_directory && record->count > 1)
		status = find_first_name(upper, OF_CHAIN, record->inode, &entry.link, err);
	if (!status)
		status = take_content(upper, &entry, &closed, err);
	if (!status)
		status = emit(upper, &entry, err);
	if (status || !is_directory)
		return status;
	return upper_walk_enter(walk, &none, item->origin, LS_NONE, err);
}

/* ---- the walk ---- */

static int take(struct ls_upper *upper, const struct upper_item *item, struct ls_error *err)
{
	switch (item->type) {
	case UPPER_ABSENT:
		return take_from_chain(upper, item, err);
	case DT_WHT:
	case DT_SOCK:
		return take_nothing(upper, item, err);
	case DT_DIR:
		return take_directory(upper, item, err);
	case DT_REG:
		return take_file(upper, item, err);
	default:
		return take_special(upper, item, err);
	}
}

static int step(struct ls_upper *upper, struct ls_error *err)
{
	struct upper_walk *walk = &upper->walk;
	struct upper_item *item;
	int status = upper_walk_next(walk, &item, err);

	if (status)
		return status;
	if (!item)
		return upper_walk_leave(walk, err);
	for (int round = 0; round < ROUNDS; round++) {
		status = take(upper, item, err);
		if (status != UPPER_CHANGED)
			return status;
		status = upper_walk_set_type(walk, item, err);
		if (status)
			return status;
	}
	errno = EAGAIN;
	return upper_walk_fail(walk, err);
}

/* The root is an entry only where its own attributes are not the chain's. */
static int take_root(struct ls_upper *upper, struct ls_error *err)
{
	struct upper_walk *walk = &upper->walk;
	struct ls_upper_entry entry;
	int unchanged = 0;
	int status =
	    upper_read_attributes(&upper->reader, upper_walk_top(walk)->places.at[0].fd, &upper->attributes, err);

	if (!status)
		status = upper_is_record(&upper->reader, &upper->attributes, 0, &unchanged, err);
	if (status || unchanged)
		return status;
	entry = describe(&upper->attributes);
	return add(upper, &entry, 0, err);
}

static void drop_batch(struct ls_upper *upper)
{
	for (size_t i = 0; i < upper->count; i++)
		if (upper->entries[i].fd >= 0)
			close(upper->entries[i].fd);
	upper->count = upper->bytes = 0;
	upper->is_full = 0;
	ls_arena_reset(&upper->arena);
}

int ls_upper_next(struct ls_upper *upper, struct ls_upper_entry **entries, size_t *count, struct ls_error *err)
{
	int status = LS_OK;

	drop_batch(upper);
	if (!upper->has_begun)
		status = take_root(upper, err);
	upper->has_begun = 1;
	while (!status && upper->walk.depth && !upper->is_full)
		status = step(upper, err);
	if (status)
		upper_walk_end(&upper->walk);
	*entries = upper->entries;
	*count = upper->count;
	return status;
}

int ls_upper_open(struct ls_upper **out, const struct ls_index *index, const int *uppers, size_t upper_count,
                  int with_contents, size_t whole_bytes, struct ls_error *err)
{
	struct ls_upper *upper = calloc(1, sizeof(*upper));
	int status;

	*out = NULL;
	if (!upper)
		return upper_out_of_memory(err);
	upper->with_contents = with_contents;
	upper->whole_bytes = whole_bytes;
	upper->reader = (struct upper_reader){
	    .walk = &upper->walk,
	    .arena = &upper->arena,
	    .names = malloc(LS_XATTRS_BYTES),
	    .value = malloc(LS_XATTRS_BYTES),
	};
	if (!upper->reader.names || !upper->reader.value)
		status = upper_out_of_memory(err);
	else
		status = upper_walk_begin(&upper->walk, index, uppers, upper_count, 0, err);
	if (status) {
		ls_upper_close(upper);
		return status;
	}
	*out = upper;
	return LS_OK;
}

void ls_upper_close(struct ls_upper *upper)
{
	if (!upper)
		return;
	drop_batch(upper);
	upper_walk_end(&upper->walk);
	ls_arena_free(&upper->arena);
	ls_arena_free(&upper->names);
	free(upper->entries);
	free(upper->first);
	ls_table_free(&upper->first_numbers);
	upper_names_free(&upper->several);
	free(upper->reader.names);
	free(upper->reader.value);
	free(upper);
}
