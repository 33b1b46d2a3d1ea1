#include "layer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "index_writer.h"
#include "siphash.h"

#define LEVELS (LS_LAYER_PATH_BYTES / 2) /* "a/a/a": a level takes two bytes, the first one */
#define LINK_ROOM (LS_LAYER_LINK_BYTES + LS_LAYER_LINKS)
#define ARENA_CHUNK_BYTES ((size_t)256 << 10)
#define FIRST_SLOTS 1024u

/* One path on its way from an archive's spelling to a directory and a name.
 *
 * `rest` holds the cleaned path from LINK_ROOM on; the target of a symlink on the way is put in front of what is left
 * to walk, over what has been walked, and into the room before it.
 *
 * `text`, cut at end[i], is the resolved path of the first i levels, and node[i] is their node (LS_NONE: the layer has
 * none). The first `literal` levels were reached without a symlink, so that the next path, which most often begins with
 * the same directories, starts from there. bury() forgets them when a directory goes. */
struct walk {
	char rest[LINK_ROOM + LS_LAYER_PATH_BYTES];
	size_t length;      /* of the cleaned path */
	size_t name_start;  /* where its last component begins in it */
	int is_marked;      /* a component, perhaps folded away since, begins with ".wh." */
	char text[LS_LAYER_PATH_BYTES];
	uint16_t end[LEVELS + 1];
	uint32_t node[LEVELS + 1];
	uint32_t depth;
	uint32_t literal;
	unsigned links;     /* symlinks followed */
	size_t link_bytes;  /* bytes of their targets */
};

struct arena_chunk {
	struct arena_chunk *next;
	size_t used, capacity;
	uint8_t bytes[];
};

struct slot {
	uint32_t tag;  /* low half of the hash of (parent, name); its low bits are also the slot's preferred place */
	uint32_t node; /* LS_NONE when free */
};

/* Nodes are never taken away. One that is replaced is buried (parent = LS_NONE) and its slot leads to its successor,
 * so that dropping a directory costs the same whatever is below it: a child has a greater number than its parent, and
 * one pass in finish finds those whose parent is buried. A hard link holds a copy of its target's record and names, as
 * its inode, the node of the inode's first link, buried or not; that too has the smaller number.
 *
 * Until finish a node with LS_RECORD_WHITEOUT only says that there was a whiteout of its path; a node that is
 * a whiteout and nothing else has mode 0. */
struct ls_layer_builder {
	struct ls_index_node *nodes;
	uint32_t node_count, node_capacity;
	struct slot *slots;
	uint32_t slot_mask, slots_used;
	struct arena_chunk *arena;
	uint8_t hash_key[LS_SIPHASH_KEY_BYTES];
	uint64_t entries, implied;
	uint64_t xattr_bytes;
	const uint8_t *last_xattrs;
	size_t last_xattrs_length;
	const struct ls_tar_entry *entry; /* the one being added, for messages */
	struct walk path, target;
	uint8_t xattrs[LS_LAYER_XATTR_BLOCK_BYTES];
};

enum meaning { MEANS_ENTRY, MEANS_WHITEOUT, MEANS_OPAQUE, MEANS_NOTHING };

static int refuse(const struct ls_layer_builder *builder, int status, const char *why, struct ls_error *err)
{
	char path[512];

	ls_printable(path, sizeof(path), builder->entry->path.bytes, builder->entry->path.length);
	return ls_fail(err, status, "the layer's entry \"%s\" (at byte %" PRIu64 " of its tar) %s", path,
	               builder->entry->position, why);
}

static int out_of_memory(const struct ls_layer_builder *builder, struct ls_error *err)
{
	return refuse(builder, LS_NO_MEMORY, "cannot be added: out of memory", err);
}

/* Memory that lives as long as the builder. */
static void *keep(struct ls_layer_builder *builder, const void *bytes, size_t length)
{
	struct arena_chunk *chunk = builder->arena;
	void *kept;

	if (!chunk || chunk->capacity - chunk->used < length) {
		size_t capacity = length > ARENA_CHUNK_BYTES ? length : ARENA_CHUNK_BYTES;

		chunk = malloc(sizeof(*chunk) + capacity);
		if (!chunk)
			return NULL;
		*chunk = (struct arena_chunk){.next = builder->arena, .capacity = capacity};
		builder->arena = chunk;
	}
	kept = chunk->bytes + chunk->used;
	memcpy(kept, bytes, length);
	chunk->used += length;
	return kept;
}

/* ---- nodes ---- */

static int is_directory(const struct ls_index_node *node)
{
	return S_ISDIR(node->record.mode);
}

static int is_mere_whiteout(const struct ls_index_node *node)
{
	return !node->record.mode && !(node->record.flags & LS_RECORD_LOWER_LINK);
}

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

/* The slot that leads to the child, or the free one where it belongs. */
static struct slot *find_slot(const struct ls_layer_builder *builder, uint32_t tag, uint32_t parent, const char *name,
                              size_t length)
{
	for (uint32_t i = tag & builder->slot_mask;; i = (i + 1) & builder->slot_mask) {
		struct slot *slot = &builder->slots[i];
		const struct ls_index_node *node;

		if (slot->node == LS_NONE)
			return slot;
		node = &builder->nodes[slot->node];
		if (slot->tag == tag && node->parent == parent && node->name_length == length &&
		    !memcmp(node->name, name, length))
			return slot;
	}
}

static uint32_t find_child(const struct ls_layer_builder *builder, uint32_t parent, const char *name, size_t length)
{
	return find_slot(builder, hash_child(builder, parent, name, length), parent, name, length)->node;
}

static int grow_slots(struct ls_layer_builder *builder, struct ls_error *err)
{
	uint64_t count = builder->slots ? ((uint64_t)builder->slot_mask + 1) * 2 : FIRST_SLOTS;
	struct slot *slots;

	if (count > UINT32_MAX)
		return refuse(builder, LS_LIMIT, "is one too many for an index", err);
	slots = malloc(count * sizeof(*slots));
	if (!slots)
		return out_of_memory(builder, err);
	memset(slots, 0xff, count * sizeof(*slots));
	for (uint64_t i = 0; builder->slots && i <= builder->slot_mask; i++) {
		uint32_t at = builder->slots[i].tag & (uint32_t)(count - 1);

		if (builder->slots[i].node == LS_NONE)
			continue;
		while (slots[at].node != LS_NONE)
			at = (at + 1) & (uint32_t)(count - 1);
		slots[at] = builder->slots[i];
	}
	free(builder->slots);
	builder->slots = slots;
	builder->slot_mask = (uint32_t)(count - 1);
	return LS_OK;
}

static int reserve_node(struct ls_layer_builder *builder, struct ls_error *err)
{
	if (!builder->slots || builder->slots_used >= builder->slot_mask / 3 * 2) {
		int status = grow_slots(builder, err);

		if (status)
			return status;
	}
	if (builder->node_count == builder->node_capacity) {
		size_t capacity = builder->node_capacity ? (size_t)builder->node_capacity * 2 : FIRST_SLOTS;
		struct ls_index_node *nodes;

		if (capacity > UINT32_MAX)
			return refuse(builder, LS_LIMIT, "is one too many for an index", err);
		nodes = realloc(builder->nodes, capacity * sizeof(*nodes));
		if (!nodes)
			return out_of_memory(builder, err);
		builder->nodes = nodes;
		builder->node_capacity = (uint32_t)capacity;
	}
	return LS_OK;
}

static void bury(struct ls_layer_builder *builder, uint32_t number)
{
	if (is_directory(&builder->nodes[number])) {
		builder->path.literal = 0;
		builder->target.literal = 0;
	}
	builder->nodes[number].parent = LS_NONE;
}

/* The node that stands for the path from now on: the present one if it is a directory that shall stay one, else a
 * new one for the caller to describe. */
static int claim(struct ls_layer_builder *builder, uint32_t parent, const char *name, size_t length, int directory,
                 uint32_t *number, struct ls_error *err)
{
	int status = reserve_node(builder, err);
	struct ls_index_node fresh = {.parent = parent, .name_length = (uint16_t)length};
	uint32_t tag;
	struct slot *slot;

	if (status)
		return status;
	tag = hash_child(builder, parent, name, length);
	slot = find_slot(builder, tag, parent, name, length);
	*number = slot->node;
	if (slot->node != LS_NONE) {
		const struct ls_index_node *old = &builder->nodes[slot->node];

		if (directory && is_directory(old))
			return LS_OK;
		fresh.name = old->name;
		fresh.record.flags = old->record.flags & LS_RECORD_WHITEOUT;
		bury(builder, slot->node);
	} else {
		fresh.name = keep(builder, name, length);
		if (!fresh.name)
			return out_of_memory(builder, err);
		builder->slots_used++;
	}
	*number = builder->node_count++;
	fresh.inode = *number;
	builder->nodes[*number] = fresh;
	*slot = (struct slot){.tag = tag, .node = *number};
	return LS_OK;
}

/* ---- paths ---- */

static int clean_component(const struct ls_layer_builder *builder, struct walk *walk, const char *name, size_t length,
                           struct ls_error *err)
{
	char *path = walk->rest + LINK_ROOM;

	if (!length || (length == 1 && name[0] == '.'))
		return LS_OK;
	if (length == 2 && name[0] == '.' && name[1] == '.') {
		if (!walk->length)
			return refuse(builder, LS_INVALID, "leaves the root by \"..\"", err);
		while (walk->length && path[--walk->length] != '/')
			;
		return LS_OK;
	}
	if (length > LS_LAYER_NAME_BYTES)
		return refuse(builder, LS_LIMIT, "has a name of more than 255 bytes", err);
	if (walk->length + (walk->length > 0) + length > LS_LAYER_PATH_BYTES)
		return refuse(builder, LS_LIMIT, "has a path of more than 4096 bytes", err);
	if (length >= 4 && !memcmp(name, ".wh.", 4))
		walk->is_marked = 1;
	if (walk->length)
		path[walk->length++] = '/';
	memcpy(path + walk->length, name, length);
	walk->length += length;
	return LS_OK;
}

static int clean(const struct ls_layer_builder *builder, struct walk *walk, struct ls_tar_bytes spelling,
                 struct ls_error *err)
{
	const char *at = (const char *)spelling.bytes;
	size_t left = spelling.length;
	int status;

	walk->length = 0;
	walk->is_marked = 0;
	if (left && memchr(at, 0, left))
		return refuse(builder, LS_INVALID, "has a zero byte in its path or link target", err);
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

static const char *walk_name(const struct walk *walk)
{
	return walk->rest + LINK_ROOM + walk->name_start;
}

static size_t walk_name_length(const struct walk *walk)
{
	return walk->length - walk->name_start;
}

/* Go back to the deepest literal level that the cleaned path's directory shares with the last path. */
static void keep_common_levels(struct walk *walk, size_t directory_length)
{
	const char *path = walk->rest + LINK_ROOM;
	uint32_t depth = walk->literal;
	size_t limit = walk->end[depth] < directory_length ? walk->end[depth] : directory_length;
	size_t common = 0;

	if (!memcmp(path, walk->text, limit))
		common = limit;
	else
		while (path[common] == walk->text[common])
			common++;
	while (depth && (walk->end[depth] > common || walk->node[depth] == LS_NONE ||
	                 (walk->end[depth] < directory_length && path[walk->end[depth]] != '/')))
		depth--;
	walk->depth = walk->literal = depth;
	walk->links = 0;
	walk->link_bytes = 0;
}

static void leave_level(struct walk *walk, uint32_t depth)
{
	walk->depth = depth;
	if (walk->literal > depth)
		walk->literal = depth;
}

static int enter_level(const struct ls_layer_builder *builder, struct walk *walk, const char *name, size_t length,
                       uint32_t node, struct ls_error *err)
{
	size_t used = walk->end[walk->depth];

	if (used + (used > 0) + length > LS_LAYER_PATH_BYTES)
		return refuse(builder, LS_LIMIT, "has a path of more than 4096 bytes", err);
	if (used)
		walk->text[used++] = '/';
	memcpy(walk->text + used, name, length);
	walk->depth++;
	walk->end[walk->depth] = (uint16_t)(used + length);
	walk->node[walk->depth] = node;
	if (!walk->links)
		walk->literal = walk->depth;
	return LS_OK;
}

/* Put the symlink's target in front of rest[at]; moves `at`. */
static int follow(const struct ls_layer_builder *builder, struct walk *walk, const struct ls_index_node *link,
                  size_t *at, struct ls_error *err)
{
	size_t length = link->record.size;

	walk->link_bytes += length;
	if (++walk->links > LS_LAYER_LINKS || walk->link_bytes > LS_LAYER_LINK_BYTES)
		return refuse(builder, LS_LIMIT, "is reached through more than 40 symbolic links or 4096 bytes of them", err);
	if (link->target[0] == '/')
		leave_level(walk, 0);
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
		leave_level(walk, walk->depth ? walk->depth - 1 : 0);
		return LS_OK;
	}
	if (length > LS_LAYER_NAME_BYTES)
		return refuse(builder, LS_LIMIT, "has a name of more than 255 bytes", err);
	if (above != LS_NONE)
		child = find_child(builder, above, name, length);
	if (child == LS_NONE || is_mere_whiteout(&builder->nodes[child]))
		return enter_level(builder, walk, name, length, LS_NONE, err);
	node = &builder->nodes[child];
	if (is_directory(node))
		return enter_level(builder, walk, name, length, child, err);
	if (S_ISLNK(node->record.mode))
		return follow(builder, walk, node, at, err);
	return refuse(builder, LS_INVALID, "or its hard link target is below something that is not a directory", err);
}

/* Walk to the directory of the cleaned path. Levels that the layer does not have yet are LS_NONE. */
static int resolve(const struct ls_layer_builder *builder, struct walk *walk, struct ls_error *err)
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
		return refuse(builder, LS_LIMIT, "has a path of more than 4096 bytes", err);
	return LS_OK;
}

static void imply(struct ls_layer_builder *builder, struct ls_index_node *node)
{
	node->record.mode = S_IFDIR | 0755;
	node->record.flags |= LS_RECORD_IMPLIED;
	builder->implied++;
}

/* Make the directories of the walk that are missing. */
static int make_parents(struct ls_layer_builder *builder, struct walk *walk, struct ls_error *err)
{
	for (uint32_t level = 1; level <= walk->depth; level++) {
		size_t start = walk->end[level - 1] + (level > 1);
		const char *name = walk->text + start;
		size_t length = walk->end[level] - start;
		int status;

		if (walk->node[level] != LS_NONE)
			continue;
		if (length >= 4 && !memcmp(name, ".wh.", 4))
			return refuse(builder, LS_INVALID, "is in a directory whose name begins with \".wh.\", kept for whiteouts", err);
		if (builder->implied >= LS_LAYER_IMPLIED_BASE + LS_LAYER_IMPLIED_PER_ENTRY * builder->entries)
			return refuse(builder, LS_LIMIT, "implies more directories than a layer of this many entries may", err);
		status = claim(builder, walk->node[level - 1], name, length, 1, &walk->node[level], err);
		if (status)
			return status;
		imply(builder, &builder->nodes[walk->node[level]]);
	}
	return LS_OK;
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

static uint8_t *put_bytes(uint8_t *out, struct ls_tar_bytes bytes)
{
	if (bytes.length)
		memcpy(out, bytes.bytes, bytes.length);
	return out + bytes.length;
}

static void encode_xattrs(const struct ls_tar_entry *entry, uint8_t *out)
{
	out = put(out, entry->xattr_count, 2);
	for (size_t i = 0; i < entry->xattr_count; i++) {
		const struct ls_tar_xattr *xattr = &entry->xattrs[i];

		out = put(out, xattr->name.length, 2);
		out = put(out, xattr->value.length, 4);
		out = put_bytes(out, xattr->name);
		out = put_bytes(out, xattr->value);
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
			return refuse(builder, LS_LIMIT, "has an extended attribute whose name has no or more than 255 bytes", err);
	length = xattrs_length(entry);
	if (length > LS_LAYER_XATTR_BLOCK_BYTES)
		return refuse(builder, LS_LIMIT, "has more than 64 KiB of extended attributes", err);
	encode_xattrs(entry, builder->xattrs);
	if (length != builder->last_xattrs_length || memcmp(builder->last_xattrs, builder->xattrs, length)) {
		builder->xattr_bytes += length;
		if (builder->xattr_bytes > LS_LAYER_XATTR_BYTES)
			return refuse(builder, LS_LIMIT, "brings the layer's extended attributes over 1 GiB", err);
		builder->last_xattrs = keep(builder, builder->xattrs, length);
		if (!builder->last_xattrs)
			return out_of_memory(builder, err);
		builder->last_xattrs_length = length;
	}
	node->xattrs = builder->last_xattrs;
	node->xattrs_length = length;
	return LS_OK;
}

static int describe_symlink(struct ls_layer_builder *builder, struct ls_index_node *node, struct ls_error *err)
{
	struct ls_tar_bytes link = builder->entry->link;

	if (!link.length || memchr(link.bytes, 0, link.length))
		return refuse(builder, LS_INVALID, "is a symbolic link whose target is empty or has a zero byte", err);
	if (link.length > LS_LAYER_PATH_BYTES)
		return refuse(builder, LS_LIMIT, "is a symbolic link whose target has more than 4096 bytes", err);
	node->record.mode = S_IFLNK | 0777;
	node->record.size = link.length;
	node->target = keep(builder, link.bytes, link.length);
	return node->target ? LS_OK : out_of_memory(builder, err);
}

static int describe_device(const struct ls_layer_builder *builder, struct ls_record *record, struct ls_error *err)
{
	const struct ls_tar_entry *entry = builder->entry;

	if (entry->device_major >= 1u << 12 || entry->device_minor >= 1u << 20)
		return refuse(builder, LS_LIMIT, "is a device whose number Linux cannot hold (12 and 20 bits)", err);
	record->size = (uint64_t)entry->device_major << 32 | entry->device_minor;
	return LS_OK;
}

/* Give the claimed node what its entry says; a directory stays opaque. */
static int describe(struct ls_layer_builder *builder, struct ls_index_node *node, uint32_t content, struct ls_error *err)
{
	static const uint32_t types[] = {
		[LS_TAR_REGULAR] = S_IFREG, [LS_TAR_CHAR] = S_IFCHR,      [LS_TAR_BLOCK] = S_IFBLK,
		[LS_TAR_FIFO] = S_IFIFO,    [LS_TAR_DIRECTORY] = S_IFDIR, [LS_TAR_SYMLINK] = S_IFLNK,
	};
	const struct ls_tar_entry *entry = builder->entry;
	int status = LS_OK;

	node->record = (struct ls_record){
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

static int starts_with(const char *name, size_t length, const char *prefix)
{
	size_t n = strlen(prefix);

	return length >= n && !memcmp(name, prefix, n);
}

/* Whether a directory of the cleaned path has a name of AUFS's own. */
static int is_below_aufs(const struct walk *walk)
{
	const char *at = walk->rest + LINK_ROOM, *end = at + walk->name_start;

	while (at < end) {
		const char *slash = memchr(at, '/', (size_t)(end - at));

		if (starts_with(at, (size_t)(slash - at), ".wh..wh."))
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
	if (length == 12 && !memcmp(name, ".wh..wh..opq", 12))
		return MEANS_OPAQUE;
	if (starts_with(name, length, ".wh..wh."))
		return MEANS_NOTHING;
	if (!starts_with(name, length, ".wh."))
		return MEANS_ENTRY;
	return MEANS_WHITEOUT;
}

static int add_whiteout(struct ls_layer_builder *builder, struct ls_error *err)
{
	struct walk *walk = &builder->path;
	const char *name = walk_name(walk) + 4;
	size_t length = walk_name_length(walk) - 4;
	uint32_t parent, number;
	int status;

	if (!length || (name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.'))))
		return refuse(builder, LS_INVALID, "is a whiteout of no name, \".\" or \"..\"", err);
	status = resolve(builder, walk, err);
	if (!status)
		status = make_parents(builder, walk, err);
	if (status)
		return status;
	parent = walk->node[walk->depth];
	number = find_child(builder, parent, name, length);
	if (number == LS_NONE)
		status = claim(builder, parent, name, length, 0, &number, err);
	if (!status)
		builder->nodes[number].record.flags |= LS_RECORD_WHITEOUT;
	return status;
}

static int add_opaque(struct ls_layer_builder *builder, struct ls_error *err)
{
	struct walk *walk = &builder->path;
	int status = resolve(builder, walk, err);

	if (!status)
		status = make_parents(builder, walk, err);
	if (!status)
		builder->nodes[walk->node[walk->depth]].record.flags |= LS_RECORD_OPAQUE;
	return status;
}

/* The resolved path of a walk as one string of *length bytes, to `out` of LS_LAYER_PATH_BYTES. */
static void join(const struct walk *walk, char *out, size_t *length)
{
	size_t used = walk->end[walk->depth];

	memcpy(out, walk->text, used);
	if (used)
		out[used++] = '/';
	memcpy(out + used, walk_name(walk), walk_name_length(walk));
	*length = used + walk_name_length(walk);
}

/* Refuse a hard link at `path` to itself, or to something that putting the link there would remove. */
static int check_hard_link(const struct ls_layer_builder *builder, const char *target, size_t target_length,
                           struct ls_error *err)
{
	char path[LS_LAYER_PATH_BYTES];
	size_t length;

	join(&builder->path, path, &length);
	if (target_length >= length && !memcmp(target, path, length) &&
	    (target_length == length || target[length] == '/'))
		return refuse(builder, LS_INVALID, "is a hard link to itself or to something below itself", err);
	return LS_OK;
}

/* Find what the entry's link names: a node of the layer, or (LS_NONE) the path in the layers below. */
static int resolve_hard_link(struct ls_layer_builder *builder, char *target, size_t *length, uint32_t *number,
                             struct ls_error *err)
{
	struct walk *walk = &builder->target;
	uint32_t parent;
	int status = clean(builder, walk, builder->entry->link, err);

	if (status)
		return status;
	if (!walk->length)
		return refuse(builder, LS_INVALID, "is a hard link to the root directory", err);
	status = resolve(builder, walk, err);
	if (status)
		return status;
	join(walk, target, length);
	parent = walk->node[walk->depth];
	*number = parent == LS_NONE ? LS_NONE : find_child(builder, parent, walk_name(walk), walk_name_length(walk));
	if (*number != LS_NONE && is_mere_whiteout(&builder->nodes[*number]))
		*number = LS_NONE;
	if (*number != LS_NONE && is_directory(&builder->nodes[*number]))
		return refuse(builder, LS_INVALID, "is a hard link to a directory", err);
	return check_hard_link(builder, target, *length, err);
}

/* A link's own header may hold anything in its mode, owner and times: the inode has those of its first entry. */
static int add_hard_link(struct ls_layer_builder *builder, struct ls_error *err)
{
	struct walk *walk = &builder->path;
	struct ls_index_node source = {0}, *node;
	char target[LS_LAYER_PATH_BYTES];
	uint32_t target_number = LS_NONE, number = 0;
	size_t length = 0;
	int status = resolve_hard_link(builder, target, &length, &target_number, err);

	if (!status)
		status = claim(builder, walk->node[walk->depth], walk_name(walk), walk_name_length(walk), 0, &number, err);
	if (status)
		return status;
	if (target_number != LS_NONE) {
		source = builder->nodes[target_number];
	} else {
		source.record.flags = LS_RECORD_LOWER_LINK;
		source.record.size = length;
		source.target = keep(builder, target, length);
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
		return refuse(builder, LS_INVALID, "stands for the root but is not a directory", err);
	status = resolve(builder, walk, err);
	if (!status)
		status = make_parents(builder, walk, err);
	if (status)
		return status;
	if (builder->entry->type == LS_TAR_HARDLINK)
		return add_hard_link(builder, err);
	if (walk->length)
		status = claim(builder, walk->node[walk->depth], walk_name(walk), walk_name_length(walk), directory, &number,
		               err);
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
		return refuse(builder, LS_INVALID, "was given a content number without content, or content without one", err);
	status = clean(builder, &builder->path, entry->path, err);
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
	while (builder->arena) {
		struct arena_chunk *next = builder->arena->next;

		free(builder->arena);
		builder->arena = next;
	}
	free(builder->slots);
	free(builder->nodes);
	free(builder);
}

/* A whiteout and an entry of the same path: the entry stays. */
static void settle_flags(struct ls_record *record)
{
	if (!record->mode && !(record->flags & LS_RECORD_LOWER_LINK))
		return;
	if (S_ISDIR(record->mode) && (record->flags & LS_RECORD_WHITEOUT))
		record->flags |= LS_RECORD_OPAQUE;
	record->flags &= (uint16_t)~LS_RECORD_WHITEOUT;
}

/* Bury what is below the buried, and let the first remaining link stand for an inode whose first link is gone. */
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
	settle(builder);
	return ls_index_write(LS_INDEX_LAYER, 1, hash_key, builder->nodes, builder->node_count, contents, content_count, out,
	                      err);
}
