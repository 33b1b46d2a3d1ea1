#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "upper_attributes.h"
#include "upper_changes.h"
#include "upper_walk.h"

struct changes {
	struct upper_walk walk;
	struct ls_buffer *out;
};

static int tell(struct changes *changes, char kind, struct ls_error *err)
{
	const struct upper_walk *walk = &changes->walk;
	uint16_t length = (uint16_t)(walk->path_length + 1);
	char head[sizeof(kind) + sizeof(length) + 1] = {kind};
	int status;

	memcpy(head + sizeof(kind), &length, sizeof(length));
	head[sizeof(kind) + sizeof(length)] = '/';
	status = ls_buffer_append(changes->out, head, sizeof(head), err);
	return status ? status : ls_buffer_append(changes->out, walk->path, walk->path_length, err);
}

static int tell_item(struct changes *changes, const struct upper_item *item, struct ls_error *err)
{
	int is_there = item->type == UPPER_ABSENT ? item->origin != LS_NONE : item->type != DT_WHT;

	if (is_there)
		return tell(changes, item->base == LS_NONE ? 'A' : 'C', err);
	return item->base == LS_NONE ? LS_OK : tell(changes, 'D', err);
}

static int enter(struct changes *changes, const struct upper_item *item, struct ls_error *err)
{
	struct upper_walk *walk = &changes->walk;
	uint32_t base = upper_is_directory(walk, item->base) ? item->base : LS_NONE;
	struct upper_redirect redirect;
	struct upper_places places = {0};
	uint32_t origin = item->origin;
	int fd, is_opaque, status = LS_OK;

	if (item->type != UPPER_ABSENT) {
		status = upper_walk_open_directory(walk, item, &fd, err);
		if (status == UPPER_CHANGED)
			return LS_OK;
		if (!status)
			status = upper_walk_merge_own(walk, item, fd, &is_opaque, &redirect, &places, &origin, err);
		if (status)
			return status;
	}
	return upper_walk_enter(walk, &places, origin, base, err);
}

static int step(struct changes *changes, struct ls_error *err)
{
	struct upper_item *item;
	int status = upper_walk_next(&changes->walk, &item, err);

	if (status)
		return status;
	if (!item)
		return upper_walk_leave(&changes->walk, err);
	return item->is_inside ? enter(changes, item, err) : tell_item(changes, item, err);
}

int ls_upper_changes(const struct ls_index *index, const int *uppers, size_t upper_count, struct ls_buffer *out,
                     struct ls_error *err)
{
	struct changes changes = {.out = out};
	int status = upper_walk_begin(&changes.walk, index, uppers, upper_count, 1, err);

	while (!status && changes.walk.depth)
		status = step(&changes, err);
	upper_walk_end(&changes.walk);
	return status;
}
