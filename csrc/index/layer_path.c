#include <string.h>

#include "base/whiteout.h"
#include "layer_path.h"

static int clean_component(const struct ls_layer_builder *builder, struct walk *walk, const char *name, size_t length,
                           struct ls_error *err)
{
	char *path = walk->rest + LINK_ROOM;
	int is_marked;

	if (!length || (length == 1 && name[0] == '.'))
		return LS_OK;
	if (length == 2 && name[0] == '.' && name[1] == '.') {
		if (!walk->length)
			return ls_layer_refuse(builder, LS_INVALID, "leaves the root by \"..\"", err);
		while (walk->length && path[--walk->length] != '/')
			;
		return LS_OK;
	}
	is_marked = ls_begins_with(name, length, LS_WHITEOUT);
	if (length - (is_marked ? LS_WHITEOUT_BYTES : 0) > LS_LAYER_NAME_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "has a name of more than 255 bytes", err);
	if (walk->length + (walk->length > 0) + length > LS_LAYER_PATH_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "has a path of more than 4096 bytes", err);
	walk->is_marked |= is_marked;
	if (walk->length)
		path[walk->length++] = '/';
	memcpy(path + walk->length, name, length);
	walk->length += length;
	return LS_OK;
}

int ls_layer_clean(const struct ls_layer_builder *builder, struct walk *walk, struct ls_bytes spelling,
                   struct ls_error *err)
{
	const char *at = (const char *)spelling.bytes;
	size_t left = spelling.length;
	int status;

	walk->length = 0;
	walk->is_marked = 0;
	if (left && memchr(at, 0, left))
		return ls_layer_refuse(builder, LS_INVALID, "has a zero byte in its path or link target", err);
	while (left) {
		const char *slash = memchr(at, '/', left);
		size_t length = slash ? (size_t)(slash - at) : left;

		status = clean_component(builder, walk, at, length, err);
		if (status)
			return status;
		length += slash != NULL;
		at += length;
		left -= length;
	}
	walk->name_start = walk->length;
	while (walk->name_start && walk->rest[LINK_ROOM + walk->name_start - 1] != '/')
		walk->name_start--;
	return LS_OK;
}

/* Go back to the deepest level that the cleaned path's directory shares with the last one walked to. */
static void keep_common_levels(struct walk *walk, size_t directory_length)
{
	const char *path = walk->rest + LINK_ROOM;
	size_t limit = walk->end[walk->depth] < directory_length ? walk->end[walk->depth] : directory_length;
	size_t common = 0;
	uint32_t depth = walk->depth;

	if (!memcmp(path, walk->text, limit))
		common = limit;
	else
		while (path[common] == walk->text[common])
			common++;
	while (depth && (walk->end[depth] > common || walk->node[depth] == LS_NONE ||
	                 (walk->end[depth] < directory_length && path[walk->end[depth]] != '/')))
		depth--;
	walk->depth = depth;
	walk->links = 0;
	walk->link_bytes = 0;
}

static int enter_level(const struct ls_layer_builder *builder, struct walk *walk, const char *name, size_t length,
                       uint32_t node, struct ls_error *err)
{
	size_t used = walk->end[walk->depth];

	if (used + (used > 0) + length > LS_LAYER_PATH_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "has a path of more than 4096 bytes", err);
	if (used)
		walk->text[used++] = '/';
	memcpy(walk->text + used, name, length);
	walk->depth++;
	walk->end[walk->depth] = (uint16_t)(used + length);
	walk->node[walk->depth] = node;
	return LS_OK;
}

/* Put the symlink's target in front of rest[at]; moves `at`. */
static int follow(const struct ls_layer_builder *builder, struct walk *walk, const struct ls_index_node *link,
                  size_t *at, struct ls_error *err)
{
	size_t length = link->record.size;

	walk->link_bytes += length;
	if (++walk->links > LS_LAYER_LINKS || walk->link_bytes > LS_LAYER_LINK_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT,
		                       "is reached through more than 40 symbolic links or 4096 bytes of them", err);
	if (link->target[0] == '/')
		walk->depth = 0;
	*at -= length + 1;
	memcpy(walk->rest + *at, link->target, length);
	walk->rest[*at + length] = '/';
	return LS_OK;
}

/* Take one component of a parent path; `at` is just after it. */
static int step(const struct ls_layer_builder *builder, struct walk *walk, const char *name, size_t length, size_t *at,
                struct ls_error *err)
{
	uint32_t above = walk->node[walk->depth], child = LS_NONE;
	const struct ls_index_node *node;

	if (!length || (length == 1 && name[0] == '.'))
		return LS_OK;
	if (length == 2 && name[0] == '.' && name[1] == '.') {
		walk->depth -= walk->depth > 0;
		return LS_OK;
	}
	if (length > LS_LAYER_NAME_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "has a name of more than 255 bytes", err);
	if (above != LS_NONE)
		child = ls_layer_find_child(builder, above, name, length);
	if (child == LS_NONE || is_mere_whiteout(&builder->nodes[child]))
		return enter_level(builder, walk, name, length, LS_NONE, err);
	node = &builder->nodes[child];
	if (is_directory(node))
		return enter_level(builder, walk, name, length, child, err);
	if (S_ISLNK(node->record.mode))
		return follow(builder, walk, node, at, err);
	return ls_layer_refuse(builder, LS_INVALID,
	                       "or its hard link target is below something that is not a directory", err);
}

int ls_layer_resolve(const struct ls_layer_builder *builder, struct walk *walk, struct ls_error *err)
{
	size_t directory_length = walk->name_start ? walk->name_start - 1 : 0;
	size_t at, end = LINK_ROOM + directory_length;

	keep_common_levels(walk, directory_length);
	at = LINK_ROOM + walk->end[walk->depth];
	while (at < end) {
		const char *name = walk->rest + at;
		const char *slash = memchr(name, '/', end - at);
		size_t length = slash ? (size_t)(slash - name) : end - at;
		int status;

		at += length + (slash != NULL);
		status = step(builder, walk, name, length, &at, err);
		if (status)
			return status;
	}
	if (walk->end[walk->depth] + (walk->depth > 0) + walk_name_length(walk) > LS_LAYER_PATH_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "has a path of more than 4096 bytes", err);
	return LS_OK;
}

void ls_layer_join(const struct walk *walk, char *out, size_t *length)
{
	size_t used = walk->end[walk->depth];

	memcpy(out, walk->text, used);
	if (used)
		out[used++] = '/';
	memcpy(out + used, walk_name(walk), walk_name_length(walk));
	*length = used + walk_name_length(walk);
}
