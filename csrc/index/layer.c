#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/whiteout.h"
#include "layer.h"
#include "layer_impl.h"
#include "layer_path.h"

enum meaning { MEANS_ENTRY, MEANS_WHITEOUT, MEANS_OPAQUE, MEANS_NOTHING };

int ls_layer_refuse(const struct ls_layer_builder *builder, int status, const char *why, struct ls_error *err)
{
	struct ls_bytes path = builder->entry->path;

	return ls_fail(err, status, "the layer's entry \"%s\" (at byte %" PRIu64 " of its tar) %s",
	               LS_SHOWN(path.bytes, path.length), builder->entry->position, why);
}

static int out_of_memory(const struct ls_layer_builder *builder, struct ls_error *err)
{
	return ls_layer_refuse(builder, LS_NO_MEMORY, "cannot be added: out of memory", err);
}

/* ---- nodes ---- */

static int is_buried(const struct ls_index_node *node)
{
	return node->parent == LS_NONE;
}

static uint32_t hash_child(const struct ls_layer_builder *builder, uint32_t parent, const char *name, size_t length)
{
	uint8_t bytes[sizeof(parent) + LS_LAYER_NAME_BYTES];

	memcpy(bytes, &parent, sizeof(parent));
	memcpy(bytes + sizeof(parent), name, length);
	return (uint32_t)ls_siphash13(builder->hash_key, bytes, sizeof(parent) + length);
}

struct child {
	const struct ls_index_node *nodes;
	uint32_t parent;
	const char *name;
	size_t length;
};

static int is_child(const void *key, uint32_t number)
{
	const struct child *child = key;
	const struct ls_index_node *node = &child->nodes[number];

	return node->parent == child->parent && node->name_length == child->length &&
	       !memcmp(node->name, child->name, child->length);
}

/* The slot that leads to the child, or the free one where it belongs. */
static struct ls_table_slot *find_slot(const struct ls_layer_builder *builder, uint32_t hash, uint32_t parent,
                                       const char *name, size_t length)
{
	struct child child = {builder->nodes, parent, name, length};

	return ls_table_find(&builder->children, hash, is_child, &child);
}

uint32_t ls_layer_find_child(const struct ls_layer_builder *builder, uint32_t parent, const char *name, size_t length)
{
	return find_slot(builder, hash_child(builder, parent, name, length), parent, name, length)->number;
}

static int reserve_node(struct ls_layer_builder *builder, struct ls_error *err)
{
	size_t bytes = ls_index_block_bytes((size_t)builder->node_count + 1);
	int status;

	if (builder->node_count > LS_NONE / 2)
		return ls_layer_refuse(builder, LS_LIMIT, "is one too many for an index", err);
	status = ls_table_reserve(&builder->children, err);
	if (!status)
		status =
		    ls_array_reserve(&builder->block, &builder->block_bytes, bytes, 1, "bytes of a layer's paths", err);
	if (!status)
		builder->nodes = ls_index_nodes(builder->block);
	return status;
}

static void bury(struct ls_layer_builder *builder, uint32_t number)
{
	if (is_directory(&builder->nodes[number]))
		builder->target.depth = 0;
	builder->nodes[number].parent = LS_NONE;
}

/* The node that stands for the path from now on: the present one if it is a directory that shall stay one, else a
 * new one for the caller to describe. `path_length` is that of the whole path. */
static int claim(struct ls_layer_builder *builder, uint32_t parent, const char *name, size_t length, size_t path_length,
                 int directory, uint32_t *number, struct ls_error *err)
{
	int status = reserve_node(builder, err);
	struct ls_index_node fresh = {.parent = parent, .name_length = (uint16_t)length};
	struct ls_table_slot *slot;
	uint32_t hash;

	if (status)
		return status;
	hash = hash_child(builder, parent, name, length);
	slot = find_slot(builder, hash, parent, name, length);
	*number = slot->number;
	if (*number != LS_NONE) {
		const struct ls_index_node *old = &builder->nodes[*number];

		if (directory && is_directory(old))
			return LS_OK;
		fresh.name = old->name;
		fresh.record.flags = old->record.flags & LS_RECORD_WHITEOUT;
		bury(builder, *number);
	} else {
		fresh.name = ls_arena_copy(&builder->arena, name, length);
		if (!fresh.name)
			return out_of_memory(builder, err);
	}
	builder->bytes += LS_LAYER_NODE_BYTES + path_length;
	*number = builder->node_count++;
	fresh.inode = *number;
	builder->nodes[*number] = fresh;
	ls_table_put(&builder->children, slot, hash, *number);
	return LS_OK;
}

static void imply(struct ls_layer_builder *builder, struct ls_index_node *node)
{
	node->record.mode = S_IFDIR | 0755;
	node->record.flags |= LS_RECORD_IMPLIED;
	builder->implied++;
}

/* Walk to the directory of the entry's path, and make those on the way that are missing. */
static int make_parents(struct ls_layer_builder *builder, struct ls_error *err)
{
	struct walk *walk = &builder->path;
	int status = ls_layer_resolve(builder, walk, err);

	for (uint32_t level = 1; level <= walk->depth && !status; level++) {
		size_t start = walk->end[level - 1] + (level > 1);
		const char *name = walk->text + start;
		size_t length = walk->end[level] - start;

		if (walk->node[level] != LS_NONE)
			continue;
		if (ls_begins_with(name, length, LS_WHITEOUT))
			return ls_layer_refuse(
			    builder, LS_INVALID,
			    "is in a directory named \"" LS_WHITEOUT "\"..., which is kept for whiteouts", err);
		if (builder->implied >= LS_LAYER_IMPLIED_BASE + LS_LAYER_IMPLIED_PER_ENTRY * builder->entries)
			return ls_layer_refuse(builder, LS_LIMIT,
			                       "implies more directories than a layer of this many entries may", err);
		status =
		    claim(builder, walk->node[level - 1], name, length, walk->end[level], 1, &walk->node[level], err);
		if (!status)
			imply(builder, &builder->nodes[walk->node[level]]);
	}
	return status;
}

/* ---- what an entry says ---- */

static size_t xattrs_length(const struct ls_tar_entry *entry)
{
	size_t length = 2;

	for (size_t i = 0; i < entry->xattr_count && length <= LS_LAYER_XATTR_BLOCK_BYTES; i++) {
		if (entry->xattrs[i].value.length > LS_LAYER_XATTR_BLOCK_BYTES)
			return SIZE_MAX;
		length += 6 + entry->xattrs[i].name.length + entry->xattrs[i].value.length;
	}
	return length;
}

static uint8_t *put(uint8_t *out, uint64_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		*out++ = (uint8_t)(value >> 8 * i);
	return out;
}

static void encode_xattrs(const struct ls_tar_entry *entry, uint8_t *out)
{
	out = put(out, entry->xattr_count, 2);
	for (size_t i = 0; i < entry->xattr_count; i++) {
		const struct ls_xattr *xattr = &entry->xattrs[i];

		out = put(out, xattr->name.length, 2);
		out = put(out, xattr->value.length, 4);
		out = ls_put(out, xattr->name.bytes, xattr->name.length);
		out = ls_put(out, xattr->value.bytes, xattr->value.length);
	}
}

/* A pax global header can give every entry the same block, so a run of equal ones is kept once. */
static int describe_xattrs(struct ls_layer_builder *builder, struct ls_index_node *node, struct ls_error *err)
{
	const struct ls_tar_entry *entry = builder->entry;
	size_t length;

	node->xattrs = NULL;
	node->xattrs_length = 0;
	if (!entry->xattr_count)
		return LS_OK;
	for (size_t i = 0; i < entry->xattr_count; i++)
		if (!entry->xattrs[i].name.length || entry->xattrs[i].name.length > LS_LAYER_NAME_BYTES)
			return ls_layer_refuse(builder, LS_LIMIT,
			                       "has an extended attribute whose name is empty or over 255 bytes", err);
	length = xattrs_length(entry);
	if (length > LS_LAYER_XATTR_BLOCK_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "has more than 64 KiB of extended attributes", err);
	encode_xattrs(entry, builder->xattrs);
	if (length != builder->last_xattrs_length || memcmp(builder->last_xattrs, builder->xattrs, length)) {
		builder->xattr_bytes += length;
		if (builder->xattr_bytes > LS_LAYER_XATTR_BYTES)
			return ls_layer_refuse(builder, LS_LIMIT, "brings the layer's extended attributes over 1 GiB",
			                       err);
		builder->last_xattrs = ls_arena_copy(&builder->arena, builder->xattrs, length);
		if (!builder->last_xattrs)
			return out_of_memory(builder, err);
		builder->last_xattrs_length = length;
		builder->bytes += length;
	}
	node->xattrs = builder->last_xattrs;
	node->xattrs_length = (uint32_t)length;
	return LS_OK;
}

static int describe_symlink(struct ls_layer_builder *builder, struct ls_index_node *node, struct ls_error *err)
{
	struct ls_bytes link = builder->entry->link;

	if (!link.length || memchr(link.bytes, 0, link.length))
		return ls_layer_refuse(builder, LS_INVALID,
		                       "is a symbolic link whose target is empty or has a zero byte", err);
	if (link.length > LS_LAYER_PATH_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "is a symbolic link whose target has more than 4096 bytes",
		                       err);
	node->record.mode = S_IFLNK | 0777;
	node->record.size = link.length;
	builder->bytes += link.length;
	node->target = ls_arena_copy(&builder->arena, link.bytes, link.length);
	return node->target ? LS_OK : out_of_memory(builder, err);
}

static int describe_device(const struct ls_layer_builder *builder, struct ls_index_description *record,
                           struct ls_error *err)
{
	const struct ls_tar_entry *entry = builder->entry;

	if (entry->device_major >= 1u << 12 || entry->device_minor >= 1u << 20)
		return ls_layer_refuse(builder, LS_LIMIT, "is a device whose number Linux cannot hold (12 and 20 bits)",
		                       err);
	record->size = (uint64_t)entry->device_major << 32 | entry->device_minor;
	return LS_OK;
}

/* Give the claimed node what its entry says; a directory stays opaque. */
static int describe(struct ls_layer_builder *builder, struct ls_index_node *node, uint32_t content,
                    struct ls_error *err)
{
	static const uint32_t types[] = {
	    [LS_TAR_REGULAR] = S_IFREG, [LS_TAR_CHAR] = S_IFCHR,      [LS_TAR_BLOCK] = S_IFBLK,
	    [LS_TAR_FIFO] = S_IFIFO,    [LS_TAR_DIRECTORY] = S_IFDIR, [LS_TAR_SYMLINK] = S_IFLNK,
	};
	const struct ls_tar_entry *entry = builder->entry;
	int status = LS_OK;

	node->record = (struct ls_index_description){
	    .mode = types[entry->type] | (entry->mode & 07777),
	    .uid = entry->uid,
	    .gid = entry->gid,
	    .mtime_seconds = entry->mtime_seconds,
	    .mtime_nanoseconds = entry->mtime_nanoseconds,
	    .flags = node->record.flags & (LS_RECORD_WHITEOUT | LS_RECORD_OPAQUE),
	};
	if (entry->type == LS_TAR_REGULAR) {
		node->record.size = entry->size;
		node->record.data = content;
	} else if (entry->type == LS_TAR_SYMLINK) {
		status = describe_symlink(builder, node, err);
	} else if (entry->type == LS_TAR_CHAR || entry->type == LS_TAR_BLOCK) {
		status = describe_device(builder, &node->record, err);
	}
	return status ? status : describe_xattrs(builder, node, err);
}

/* ---- entries ---- */

/* Whether a directory of the cleaned path has a name of AUFS's own. */
static int is_below_aufs(const struct walk *walk)
{
	const char *at = walk->rest + LINK_ROOM, *end = at + walk->name_start;

	while (at < end) {
		const char *slash = memchr(at, '/', (size_t)(end - at));

		if (ls_begins_with(at, (size_t)(slash - at), LS_WHITEOUT_AUFS))
			return 1;
		at = slash + 1;
	}
	return 0;
}

/* What the cleaned path means; takes ".wh." off the name of a whiteout. */
static enum meaning interpret(struct walk *walk)
{
	const char *name = walk_name(walk);
	size_t length = walk_name_length(walk);

	if (!walk->is_marked)
		return MEANS_ENTRY;
	if (is_below_aufs(walk))
		return MEANS_NOTHING;
	if (ls_equal(name, length, LS_WHITEOUT_OPAQUE, strlen(LS_WHITEOUT_OPAQUE)))
		return MEANS_OPAQUE;
	if (ls_begins_with(name, length, LS_WHITEOUT_AUFS))
		return MEANS_NOTHING;
	if (!ls_begins_with(name, length, LS_WHITEOUT))
		return MEANS_ENTRY;
	return MEANS_WHITEOUT;
}

/* Claim the path of the entry, whose parents are there. */
static int claim_path(struct ls_layer_builder *builder, int directory, uint32_t *number, struct ls_error *err)
{
	const struct walk *walk = &builder->path;

	return claim(builder, walk->node[walk->depth], walk_name(walk), walk_name_length(walk), walk_path_length(walk),
	             directory, number, err);
}

static int add_whiteout(struct ls_layer_builder *builder, struct ls_error *err)
{
	struct walk *walk = &builder->path;
	const char *name = walk_name(walk) + LS_WHITEOUT_BYTES;
	size_t length = walk_name_length(walk) - LS_WHITEOUT_BYTES;
	uint32_t parent, number;
	int status;

	if (!length || ls_is_dots(name, length))
		return ls_layer_refuse(builder, LS_INVALID, "is a whiteout of no name, \".\" or \"..\"", err);
	status = make_parents(builder, err);
	if (status)
		return status;
	parent = walk->node[walk->depth];
	number = ls_layer_find_child(builder, parent, name, length);
	if (number == LS_NONE)
		status = claim(builder, parent, name, length, walk_path_length(walk), 0, &number, err);
	if (!status)
		builder->nodes[number].record.flags |= LS_RECORD_WHITEOUT;
	return status;
}

static int add_opaque(struct ls_layer_builder *builder, struct ls_error *err)
{
	struct walk *walk = &builder->path;
	int status = make_parents(builder, err);

	if (!status)
		builder->nodes[walk->node[walk->depth]].record.flags |= LS_RECORD_OPAQUE;
	return status;
}

/* Refuse a hard link at `path` to itself, or to something that putting the link there would remove. */
static int check_hard_link(const struct ls_layer_builder *builder, const char *target, size_t target_length,
                           struct ls_error *err)
{
	char path[LS_LAYER_PATH_BYTES];
	size_t length;

	ls_layer_join(&builder->path, path, &length);
	if (target_length >= length && !memcmp(target, path, length) &&
	    (target_length == length || target[length] == '/'))
		return ls_layer_refuse(builder, LS_INVALID, "is a hard link to itself or to something below itself",
		                       err);
	return LS_OK;
}

/* Find what the entry's link names: a node of the layer, or (LS_NONE) the path in the layers below. */
static int resolve_hard_link(struct ls_layer_builder *builder, char *target, size_t *length, uint32_t *number,
                             struct ls_error *err)
{
	struct walk *walk = &builder->target;
	uint32_t parent;
	int status = ls_layer_clean(builder, walk, builder->entry->link, err);

	if (status)
		return status;
	if (!walk->length)
		return ls_layer_refuse(builder, LS_INVALID, "is a hard link to the root directory", err);
	if (walk_name_length(walk) > LS_LAYER_NAME_BYTES)
		return ls_layer_refuse(builder, LS_LIMIT, "is a hard link to a name of more than 255 bytes", err);
	status = ls_layer_resolve(builder, walk, err);
	if (status)
		return status;
	ls_layer_join(walk, target, length);
	parent = walk->node[walk->depth];
	*number = LS_NONE;
	if (parent != LS_NONE)
		*number = ls_layer_find_child(builder, parent, walk_name(walk), walk_name_length(walk));
	if (*number != LS_NONE && is_mere_whiteout(&builder->nodes[*number]))
		*number = LS_NONE;
	if (*number != LS_NONE && is_directory(&builder->nodes[*number]))
		return ls_layer_refuse(builder, LS_INVALID, "is a hard link to a directory", err);
	return check_hard_link(builder, target, *length, err);
}

/* A link's own header may hold anything in its mode, owner and times: the inode has those of its first entry. */
static int add_hard_link(struct ls_layer_builder *builder, struct ls_error *err)
{
	struct ls_index_node source = {0}, *node;
	char target[LS_LAYER_PATH_BYTES];
	uint32_t target_number = LS_NONE, number = 0;
	size_t length = 0;
	int status = resolve_hard_link(builder, target, &length, &target_number, err);

	if (!status)
		status = claim_path(builder, 0, &number, err);
	if (status)
		return status;
	if (target_number != LS_NONE) {
		source = builder->nodes[target_number];
	} else {
		source.record.flags = LS_RECORD_LOWER_LINK;
		source.record.size = length;
		builder->bytes += length;
		source.target = ls_arena_copy(&builder->arena, target, length);
		if (!source.target)
			return out_of_memory(builder, err);
	}
	node = &builder->nodes[number];
	source.record.flags = (source.record.flags & LS_RECORD_LOWER_LINK) | (node->record.flags & LS_RECORD_WHITEOUT);
	node->record = source.record;
	node->target = source.target;
	node->xattrs = source.xattrs;
	node->xattrs_length = source.xattrs_length;
	node->inode = source.record.flags & LS_RECORD_LOWER_LINK ? number : source.inode;
	return LS_OK;
}

static int add_entry(struct ls_layer_builder *builder, uint32_t content, struct ls_error *err)
{
	struct walk *walk = &builder->path;
	uint32_t number = 0;
	int status, directory = builder->entry->type == LS_TAR_DIRECTORY;

	if (!walk->length && !directory)
		return ls_layer_refuse(builder, LS_INVALID, "stands for the root but is not a directory", err);
	status = make_parents(builder, err);
	if (status)
		return status;
	if (builder->entry->type == LS_TAR_HARDLINK)
		return add_hard_link(builder, err);
	if (walk->length)
		status = claim_path(builder, directory, &number, err);
	return status ? status : describe(builder, &builder->nodes[number], content, err);
}

int ls_layer_builder_add(struct ls_layer_builder *builder, const struct ls_tar_entry *entry, uint32_t content,
                         struct ls_error *err)
{
	int has_content = entry->type == LS_TAR_REGULAR && entry->size > 0;
	int status;

	builder->entry = entry;
	builder->entries++;
	if (has_content != (content != LS_NONE))
		return ls_layer_refuse(builder, LS_INVALID,
		                       "was given a content number without content, or content without one", err);
	status = ls_layer_clean(builder, &builder->path, entry->path, err);
	if (status)
		return status;
	switch (interpret(&builder->path)) {
	case MEANS_NOTHING:
		return LS_OK;
	case MEANS_OPAQUE:
		return add_opaque(builder, err);
	case MEANS_WHITEOUT:
		return add_whiteout(builder, err);
	default:
		return add_entry(builder, content, err);
	}
}

/* ---- the builder ---- */

int ls_layer_builder_new(struct ls_layer_builder **builder, struct ls_error *err)
{
	static const struct ls_tar_entry root = {.type = LS_TAR_DIRECTORY};
	struct ls_layer_builder *new = calloc(1, sizeof(*new));
	int status;

	*builder = NULL;
	if (!new)
		return ls_fail(err, LS_NO_MEMORY, "out of memory starting the index of a layer");
	new->entry = &root;
	status = reserve_node(new, err);
	if (!status && getrandom(new->hash_key, sizeof(new->hash_key), 0) != sizeof(new->hash_key))
		status = ls_fail_errno(err, "getting a random key for the index of a layer");
	if (status) {
		ls_layer_builder_free(new);
		return status;
	}
	new->nodes[0] = (struct ls_index_node){.name = ""};
	new->node_count = 1;
	imply(new, &new->nodes[0]);
	new->implied = 0;
	*builder = new;
	return LS_OK;
}

void ls_layer_builder_free(struct ls_layer_builder *builder)
{
	if (!builder)
		return;
	ls_arena_free(&builder->arena);
	ls_table_free(&builder->children);
	free(builder->block);
	free(builder);
}

uint64_t ls_layer_builder_bytes(const struct ls_layer_builder *builder)
{
	return builder->bytes;
}

/* A whiteout and an entry of the same path: the entry stays. */
static void settle_flags(struct ls_index_description *record)
{
	if (!record->mode && !(record->flags & LS_RECORD_LOWER_LINK))
		return;
	if (S_ISDIR(record->mode) && (record->flags & LS_RECORD_WHITEOUT))
		record->flags |= LS_RECORD_OPAQUE;
	record->flags &= (uint16_t)~LS_RECORD_WHITEOUT;
}

/* Bury what is below the buried, and let the first remaining link stand for an inode whose first link is gone (whose
 * flags are those of another path). */
static void settle(struct ls_layer_builder *builder)
{
	struct ls_index_node *nodes = builder->nodes;

	settle_flags(&nodes[0].record);
	for (uint32_t i = 1; i < builder->node_count; i++) {
		uint32_t holder = nodes[i].inode;

		if (is_buried(&nodes[i]))
			continue;
		if (is_buried(&nodes[nodes[i].parent])) {
			nodes[i].parent = LS_NONE;
			continue;
		}
		settle_flags(&nodes[i].record);
		if (!is_buried(&nodes[holder]))
			continue;
		if (nodes[holder].inode == holder)
			nodes[holder].inode = i;
		nodes[i].inode = nodes[holder].inode;
	}
}

int ls_layer_builder_finish(struct ls_layer_builder *builder, const uint8_t hash_key[16],
                            const struct ls_content *contents, uint32_t content_count, struct ls_buffer *out,
                            struct ls_error *err)
{
	uint8_t *block = builder->block;

	settle(builder);
	/* Paths are not looked up any more, and writing takes memory of its own. */
	ls_table_free(&builder->children);
	builder->block = NULL;
	builder->nodes = NULL;
	return ls_index_write_over(LS_INDEX_LAYER, 1, hash_key, block, builder->block_bytes, builder->node_count,
	                           contents, content_count, out, err);
}
