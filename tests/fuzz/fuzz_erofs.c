/* libFuzzer: the EROFS writer. What it writes is read back here, byte by byte, and says what the index or the slots of the
 * pack said: every number leads into the image, names ascend, and each inode has its attributes.
 *
 * The first byte of an input chooses: 0, an index, whose digests are put right; 1, the description of a tree, whose names
 * and extended attributes are as hostile as an index can have them; 2, the slots of a pack. */
#include "index_bytes.h"

#include "erofs/erofs.h"
#include "erofs/erofs_decimal.h"
#include "erofs/erofs_format.h"
#include "erofs/erofs_pack.h"
#include "erofs/erofs_tree.h"
#include "erofs/erofs_xattr_entry.h"
#include "index/index_verify.h"
#include "index/index_writer.h"

#define MOST_NODES 120
#define MOST_CONTENTS 6
#define MOST_XATTRS 6

/* What is left of an input; 0 where nothing is. */
struct input {
	const uint8_t *at, *end;
};

static uint64_t take(struct input *input, size_t bytes)
{
	uint64_t number = 0;

	for (; bytes && input->at < input->end; bytes--)
		number = number << 8 | *input->at++;
	return number;
}

/* An image, and what is known of it. */
struct image {
	const uint8_t *bytes;
	size_t length;
	uint32_t block_bytes;
	struct erofs_super super;
	uint64_t inodes;
};

static const uint8_t *bytes_at(const struct image *image, uint64_t position, uint64_t length)
{
	REQUIRE(position <= image->length && length <= image->length - position);
	return image->bytes + position;
}

static void open_image(struct image *image, const struct ls_buffer *out, uint8_t block_bits)
{
	*image = (struct image){.bytes = out->bytes, .length = out->length, .block_bytes = 1u << block_bits};
	memcpy(&image->super, bytes_at(image, EROFS_SUPER_OFFSET, sizeof(image->super)), sizeof(image->super));
	REQUIRE(image->super.magic == EROFS_MAGIC && image->super.block_bits == block_bits);
	REQUIRE((uint64_t)image->super.blocks * image->block_bytes == image->length);
}

/* An inode of either form, as the extended one; *position is where what follows it begins. */
static struct erofs_inode_extended read_inode(const struct image *image, uint64_t nid, uint64_t *position)
{
	struct erofs_inode_extended inode;
	struct erofs_inode_compact compact;

	*position = nid * EROFS_NID_BYTES;
	REQUIRE(*position >= EROFS_SUPER_OFFSET + sizeof(struct erofs_super));
	memcpy(&compact, bytes_at(image, *position, sizeof(compact)), sizeof(compact));
	if (compact.format & 1) {
		memcpy(&inode, bytes_at(image, *position, sizeof(inode)), sizeof(inode));
		REQUIRE(*position / image->block_bytes == (*position + sizeof(inode) - 1) / image->block_bytes);
		*position += sizeof(inode);
	} else {
		inode = (struct erofs_inode_extended){
		    .format = compact.format,
		    .xattr_count = compact.xattr_count,
		    .mode = compact.mode,
		    .size = compact.size,
		    .data = compact.data,
		    .links = compact.links,
		};
		*position += sizeof(compact);
	}
	if (inode.xattr_count)
		*position += sizeof(struct erofs_xattr_header) + (inode.xattr_count - 1u) * 4;
	bytes_at(image, *position, 0);
	return inode;
}

/* Block `number` of what a directory or symbolic link has; `tail` is where what follows its inode begins. */
static const uint8_t *data_block(const struct image *image, const struct erofs_inode_extended *inode, uint64_t tail,
                                 uint64_t number, uint32_t *length)
{
	uint64_t left = inode->size - number * image->block_bytes;
	int is_last = left <= image->block_bytes;

	*length = is_last ? (uint32_t)left : image->block_bytes;
	if (is_last && inode->format >> 1 == EROFS_FLAT_INLINE) {
		REQUIRE(tail / image->block_bytes == (tail + left - 1) / image->block_bytes);
		return bytes_at(image, tail, left);
	}
	return bytes_at(image, (inode->data + number) * image->block_bytes, *length);
}

/* The entries of a directory, one after another. */
struct listing {
	const struct image *image;
	struct erofs_inode_extended inode;
	uint64_t tail, block;
	const uint8_t *bytes; /* of the block */
	uint32_t length, count, next;
	const uint8_t *name; /* of the last entry */
	size_t name_length;
};

static struct erofs_dirent dirent_at(const struct listing *listing, uint32_t number)
{
	struct erofs_dirent dirent;

	REQUIRE((number + 1) * sizeof(dirent) <= listing->length);
	memcpy(&dirent, listing->bytes + number * sizeof(dirent), sizeof(dirent));
	return dirent;
}

/* 0 after the last. */
static int next_entry(struct listing *listing, struct erofs_dirent *dirent)
{
	const uint8_t *before = listing->name;
	size_t length = listing->name_length, end;
	int order;

	if (listing->next == listing->count) {
		if (listing->block * listing->image->block_bytes >= listing->inode.size)
			return 0;
		listing->bytes =
		    data_block(listing->image, &listing->inode, listing->tail, listing->block++, &listing->length);
		listing->count = dirent_at(listing, 0).name_offset / (uint32_t)sizeof(*dirent);
		REQUIRE(listing->count);
		listing->next = 0;
	}
	*dirent = dirent_at(listing, listing->next++);
	end = listing->next < listing->count ? dirent_at(listing, listing->next).name_offset : listing->length;
	REQUIRE(dirent->name_offset >= listing->count * sizeof(*dirent) && dirent->name_offset < end &&
	        end <= listing->length);
	listing->name = listing->bytes + dirent->name_offset;
	listing->name_length = strnlen((const char *)listing->name, end - dirent->name_offset);
	REQUIRE(listing->next < listing->count ? dirent->name_offset + listing->name_length == end
	                                       : listing->name_length);
	if (!before)
		return 1;
	order = memcmp(before, listing->name, length < listing->name_length ? length : listing->name_length);
	REQUIRE(order < 0 || (!order && length < listing->name_length));
	return 1;
}

static int is_named(const struct listing *listing, const char *name, size_t length)
{
	return listing->name_length == length && !memcmp(listing->name, name, length);
}

/* ---- a tree against its index */

struct tree {
	struct image image;
	const struct ls_index *index;
	const struct ls_location *locations;
};

struct xattr_area {
	uint64_t at, end;
	struct erofs_xattr_header header;
	uint32_t shared; /* numbers that were taken */
};

static const uint8_t *next_xattr(const struct tree *tree, struct xattr_area *area, struct erofs_xattr_entry *entry)
{
	int is_shared = area->shared < area->header.shared_count;
	uint64_t position = area->at;
	uint32_t number;

	if (is_shared) {
		memcpy(&number, bytes_at(&tree->image, area->at, sizeof(number)), sizeof(number));
		position = (uint64_t)tree->image.super.xattr_block * tree->image.block_bytes + (uint64_t)number * 4;
		area->at += sizeof(number);
		area->shared++;
	} else if (area->at >= area->end) {
		REQUIRE(area->at == area->end);
		return NULL;
	}
	memcpy(entry, bytes_at(&tree->image, position, sizeof(*entry)), sizeof(*entry));
	bytes_at(&tree->image, position, sizeof(*entry) + entry->name_length + entry->value_length);
	if (!is_shared)
		area->at += (sizeof(*entry) + entry->name_length + entry->value_length + 3) / 4 * 4;
	return tree->image.bytes + position + sizeof(*entry);
}

static int same_xattr(const struct erofs_xattr_entry *entry, const uint8_t *bytes, const struct erofs_xattr *xattr)
{
	size_t escape = xattr->is_escaped ? strlen("overlay.") : 0;

	return entry->prefix == xattr->prefix && entry->name_length == escape + xattr->name_length &&
	       !memcmp(bytes, "overlay.", escape) && !memcmp(bytes + escape, xattr->name, xattr->name_length) &&
	       entry->value_length == xattr->value_length &&
	       !memcmp(bytes + entry->name_length, xattr->value, xattr->value_length);
}

/* How often an inode has an attribute. */
static unsigned count_xattr(const struct tree *tree, struct xattr_area area, const struct erofs_xattr *xattr)
{
	struct erofs_xattr_entry entry;
	const uint8_t *bytes;
	unsigned found = 0;

	while ((bytes = next_xattr(tree, &area, &entry)))
		found += same_xattr(&entry, bytes, xattr);
	REQUIRE(!found || !(area.header.filter & erofs_xattr_filter_bit(xattr)));
	return found;
}

static int spell_redirect(const struct tree *tree, uint32_t content, char *out, size_t room)
{
	const struct ls_location *location = &tree->locations[content];
	const uint8_t *digest = tree->index->contents[content].digest;
	int length;

	if (location->pack != LS_LOCATION_OBJECT)
		return snprintf(out, room, "/p%u/%u", location->pack, location->slot);
	length = snprintf(out, room, "/%02x/", digest[0]);
	for (int i = 1; i < 32; i++)
		length += snprintf(out + length, room - (size_t)length, "%02x", digest[i]);
	return length;
}

static unsigned check_overlay_xattrs(const struct tree *tree, struct xattr_area area, uint32_t content)
{
	struct erofs_xattr metacopy = {
	    .name = (const uint8_t *)"overlay.metacopy", .name_length = 16, .prefix = EROFS_XATTR_TRUSTED};
	struct erofs_xattr redirect = {
	    .name = (const uint8_t *)"overlay.redirect", .name_length = 16, .prefix = EROFS_XATTR_TRUSTED};
	char value[80];

	if (content == LS_NONE)
		return 0;
	redirect.value_length = (uint16_t)spell_redirect(tree, content, value, sizeof(value));
	redirect.value = metacopy.value = (const uint8_t *)value;
	REQUIRE(count_xattr(tree, area, &metacopy) == 1 && count_xattr(tree, area, &redirect) == 1);
	return 2;
}

static void check_xattrs(const struct tree *tree, uint32_t number, uint64_t begin, uint64_t end)
{
	const struct ls_record *record = &tree->index->records[number];
	struct ls_xattr_cursor cursor = {0};
	struct xattr_area area = {.at = begin, .end = end};
	struct erofs_xattr_entry entry;
	unsigned expected;

	if (begin != end) {
		memcpy(&area.header, bytes_at(&tree->image, begin, sizeof(area.header)), sizeof(area.header));
		area.at += sizeof(area.header);
	}
	expected = check_overlay_xattrs(tree, area, erofs_content(record));
	while (!ls_index_xattr_next(tree->index, record->xattrs, &cursor, NULL) && cursor.name) {
		struct erofs_xattr xattr;

		if (!erofs_xattr_is_shown(&cursor))
			continue;
		REQUIRE(!erofs_xattr_parse(tree->index, number, &cursor, &xattr, NULL));
		REQUIRE(count_xattr(tree, area, &xattr) == 1);
		expected++;
	}
	while (next_xattr(tree, &area, &entry))
		REQUIRE(expected--);
	REQUIRE(!expected);
}

static void check_symlink(const struct tree *tree, const struct ls_record *record,
                          const struct erofs_inode_extended *inode, uint64_t tail)
{
	const char *target = NULL;
	uint32_t length;
	const uint8_t *bytes = data_block(&tree->image, inode, tail, 0, &length);

	REQUIRE(!ls_index_string(tree->index, record->data, record->size, &target, NULL));
	REQUIRE(inode->size == record->size && inode->size == length && !memcmp(bytes, target, length));
}

static struct erofs_inode_extended check_inode(const struct tree *tree, uint32_t number, uint64_t nid, uint64_t *tail)
{
	const struct ls_record *record = &tree->index->records[tree->index->records[number].inode];
	struct erofs_inode_extended inode = read_inode(&tree->image, nid, tail);
	uint32_t content = erofs_content(record), block;

	REQUIRE(inode.mode == record->mode && inode.uid == record->uid && inode.gid == record->gid);
	REQUIRE(inode.mtime_seconds == record->mtime_seconds && inode.mtime_nanoseconds == record->mtime_nanoseconds);
	REQUIRE(S_ISDIR(record->mode) || inode.links == record->count);
	check_xattrs(tree, record->inode, nid * EROFS_NID_BYTES + sizeof(inode), *tail);
	if (S_ISREG(record->mode))
		REQUIRE(inode.size == record->size &&
		        inode.format >> 1 == (content == LS_NONE ? EROFS_FLAT_PLAIN : EROFS_CHUNKED));
	if (content != LS_NONE) {
		memcpy(&block, bytes_at(&tree->image, *tail, sizeof(block)), sizeof(block));
		REQUIRE(block == LS_EROFS_NOWHERE_BLOCK && !(inode.data & EROFS_CHUNK_INDEXES));
		REQUIRE(UINT64_C(1) << (inode.data + LS_EROFS_BLOCK_BITS) >= inode.size);
	}
	if (S_ISLNK(record->mode))
		check_symlink(tree, record, &inode, *tail);
	return inode;
}

static void check_directory(const struct tree *tree, uint32_t number, uint64_t nid, uint64_t parent_nid)
{
	uint32_t child = 0, count = 0, directories = 0, dots = 0;
	struct listing listing = {.image = &tree->image};
	struct erofs_dirent dirent;

	REQUIRE(!ls_index_children(tree->index, number, &child, &count, NULL));
	listing.inode = check_inode(tree, number, nid, &listing.tail);
	for (uint32_t end = child + count; next_entry(&listing, &dirent);) {
		const char *name = NULL;
		size_t length = 0;
		uint64_t unused;

		if (is_named(&listing, ".", 1) || is_named(&listing, "..", 2)) {
			REQUIRE(dirent.nid == (listing.name_length == 1 ? nid : parent_nid));
			REQUIRE(dirent.type == EROFS_TYPE_DIRECTORY);
			dots++;
			continue;
		}
		while (child < end && erofs_is_hidden(&tree->index->records[child]))
			child++;
		REQUIRE(child < end);
		REQUIRE(!ls_index_name(tree->index, &tree->index->records[child], &name, &length, NULL));
		REQUIRE(is_named(&listing, name, length));
		if (S_ISDIR(tree->index->records[child].mode)) {
			REQUIRE(dirent.type == EROFS_TYPE_DIRECTORY);
			check_directory(tree, child, dirent.nid, nid);
			directories++;
		} else {
			check_inode(tree, child, dirent.nid, &unused);
		}
		child++;
	}
	for (; count && child < tree->index->records[number].data + count; child++)
		REQUIRE(erofs_is_hidden(&tree->index->records[child]));
	REQUIRE(dots == 2 && listing.inode.links == 2 + directories);
}

static void write_tree(const struct ls_index *index, unsigned seed, int is_good)
{
	uint32_t count = index->header->content_count;
	struct ls_location *locations = malloc(count * sizeof(*locations) + 1);
	struct tree tree = {.index = index, .locations = locations};
	struct ls_buffer out = {0};
	struct ls_error err;
	int status;

	REQUIRE(locations);
	for (uint32_t i = 0; i < count; i++)
		locations[i] = (seed + i) % 3 ? (struct ls_location){seed * i % 4294967291u, i * 1000003}
		                              : (struct ls_location){LS_LOCATION_OBJECT, 0};
	status = ls_erofs_write_tree(index, locations, &out, &err);
	REQUIRE(!status || status == LS_LIMIT || status == LS_INVALID || (status == LS_CORRUPT && !is_good));
	REQUIRE(!status || err.status == status);
	if (!status && is_good) {
		open_image(&tree.image, &out, LS_EROFS_BLOCK_BITS);
		check_directory(&tree, 0, tree.image.super.root_nid, tree.image.super.root_nid);
	}
	ls_buffer_free(&out);
	free(locations);
}

/* A socket is no type that a layer has, but an index may. */
static int has_socket(const struct ls_index *index)
{
	for (uint32_t i = 0; i < index->header->record_count; i++)
		if (S_ISSOCK(index->records[i].mode))
			return 1;
	return 0;
}

static void write_index_given(const uint8_t *data, size_t length, unsigned seed)
{
	uint8_t *bytes = copy_of(data, length);
	struct ls_index index;

	seal(bytes, length, 1);
	if (!ls_index_open(&index, bytes, length, NULL))
		write_tree(&index, seed, !ls_index_verify(&index, NULL) && !has_socket(&index));
	free(bytes);
}

/* ---- trees that are described */

struct description {
	struct ls_index_node nodes[MOST_NODES];
	char names[MOST_NODES][512];
	struct ls_buffer xattrs[MOST_NODES];
	struct ls_content contents[MOST_CONTENTS];
	uint32_t count, content_count;
	uint32_t large; /* values of more than 64 KiB that it may have yet */
};

/* A name: bytes of the input, one of them repeated. */
static size_t take_name(struct input *input, char *name, size_t most)
{
	size_t length = take(input, 1) % 12, repeated = take(input, 1);

	for (size_t i = 0; i < length; i++)
		name[i] = (char)take(input, 1);
	repeated = repeated < 128 ? 0 : repeated * 2;
	for (; repeated && length < most; repeated--, length++)
		name[length] = 'n';
	return length;
}

struct given_xattr {
	char name[600];
	size_t name_length, value_length;
};

static int compare_given(const void *a, const void *b)
{
	const struct given_xattr *left = a, *right = b;
	int order = memcmp(left->name, right->name,
	                   left->name_length < right->name_length ? left->name_length : right->name_length);

	return order ? order : (left->name_length > right->name_length) - (left->name_length < right->name_length);
}

static void append(struct ls_buffer *buffer, const void *bytes, size_t length)
{
	REQUIRE(!ls_buffer_append(buffer, bytes, length, NULL));
}

static void take_xattrs(struct input *input, struct ls_buffer *block, uint32_t *large)
{
	static const char *const prefixes[] = {"user.",
	                                       "trusted.",
	                                       "security.",
	                                       "system.posix_acl_access",
	                                       "system.posix_acl_default",
	                                       "trusted.overlay.",
	                                       "com.apple.",
	                                       ""};
	struct given_xattr given[MOST_XATTRS];
	size_t count = take(input, 1) % (MOST_XATTRS + 1), kept = 0;
	uint16_t written;

	for (size_t i = 0; i < count; i++) {
		strcpy(given[i].name, prefixes[take(input, 1) % (sizeof(prefixes) / sizeof(*prefixes))]);
		given[i].name_length = strlen(given[i].name);
		given[i].name_length += take_name(input, given[i].name + given[i].name_length, 500);
		given[i].value_length = take(input, 1);
		if (given[i].value_length >= 250 && *large) {
			given[i].value_length *= 260;
			--*large;
		}
	}
	qsort(given, count, sizeof(*given), compare_given);
	for (size_t i = 0; i < count; i++)
		if (given[i].name_length && (!kept || compare_given(&given[kept - 1], &given[i])))
			given[kept++] = given[i];
	written = (uint16_t)kept;
	if (!kept)
		return;
	append(block, &written, sizeof(written));
	for (size_t i = 0; i < kept; i++) {
		uint16_t name_length = (uint16_t)given[i].name_length;
		uint32_t value_length = (uint32_t)given[i].value_length;

		append(block, &name_length, sizeof(name_length));
		append(block, &value_length, sizeof(value_length));
		append(block, given[i].name, name_length);
		append(block, NULL, value_length);
	}
}

static void take_kind(struct input *input, struct description *made, struct ls_index_node *node)
{
	static const uint32_t types[] = {S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFDIR, S_IFREG};
	static const char targets[5000] = "t";
	uint32_t other = (uint32_t)take(input, 2) % made->count;

	node->record.mode = types[take(input, 1) % 8] | ((uint32_t)take(input, 2) & 07777);
	node->record.data = LS_NONE;
	switch (node->record.mode & S_IFMT) {
	case S_IFREG:
		if (other % 2 && made->content_count) {
			node->record.data = other % made->content_count;
			node->record.size = made->contents[node->record.data].size;
		}
		break;
	case S_IFLNK:
		node->target = targets;
		node->record.size = take(input, 1) < 200 ? 1 + other % 100 : 1 + other * 64 % sizeof(targets);
		break;
	case S_IFCHR:
	case S_IFBLK:
		node->record.size = (take(input, 2) % 5000) << 32 | take(input, 3);
		break;
	}
	/* A hard link: what it is, its first link says. */
	if (!S_ISDIR(node->record.mode) && other % 7 == 3 && !S_ISDIR(made->nodes[other].record.mode))
		node->inode = made->nodes[other].inode;
}

static void take_node(struct input *input, struct description *made)
{
	struct ls_index_node *node = &made->nodes[made->count];
	uint32_t parent = (uint32_t)take(input, 1) % made->count, copies = (uint32_t)take(input, 1);
	size_t length;

	while (!S_ISDIR(made->nodes[parent].record.mode))
		parent--;
	length = take_name(input, made->names[made->count], 300);
	*node = (struct ls_index_node){.parent = parent, .inode = made->count, .name = made->names[made->count]};
	take_kind(input, made, node);
	node->record.uid = (uint32_t)take(input, 1);
	node->record.gid = (uint32_t)take(input, 4);
	node->record.mtime_seconds = (int64_t)take(input, 8);
	node->record.mtime_nanoseconds = (uint32_t)take(input, 4) % 1000000000;
	take_xattrs(input, &made->xattrs[made->count], &made->large);
	node->xattrs = made->xattrs[made->count].bytes;
	node->xattrs_length = made->xattrs[made->count].length;
	/* Each name ends with the number of its node, but where it may be that of another. */
	if (length % 4)
		length += (size_t)snprintf(made->names[made->count] + length, 16, "%u", made->count);
	node->name_length = (uint16_t)length;
	made->count++;
	/* Many alike: directories of several blocks, attributes that are shared. */
	for (copies = copies < 224 ? 0 : copies; copies && made->count < MOST_NODES; copies--) {
		struct ls_index_node *copy = &made->nodes[made->count];

		*copy = *node;
		copy->inode = node->inode == (uint32_t)(node - made->nodes) ? made->count : node->inode;
		copy->name = made->names[made->count];
		memcpy(made->names[made->count], node->name, node->name_length);
		copy->name_length =
		    (uint16_t)(node->name_length +
		               snprintf(made->names[made->count] + node->name_length, 16, "-%u", made->count));
		made->count++;
	}
}

static void write_described(struct input *input)
{
	static struct description made;
	static const uint64_t sizes[] = {1, 4096, UINT64_C(1) << 32, UINT64_C(1) << 43, (UINT64_C(1) << 43) + 1, 5};
	static const uint8_t key[16];
	struct ls_buffer bytes = {0};
	struct ls_index index;
	struct ls_error err;
	int status;

	made.count = 1;
	made.large = 2;
	made.nodes[0] = (struct ls_index_node){.record = {.mode = S_IFDIR | 0755, .data = LS_NONE}, .name = ""};
	made.content_count = (uint32_t)take(input, 1) % (MOST_CONTENTS + 1);
	for (uint32_t i = 0; i < made.content_count; i++)
		made.contents[i] = (struct ls_content){.digest = {(uint8_t)i}, .size = sizes[i]};
	while (input->at < input->end && made.count < MOST_NODES)
		take_node(input, &made);
	status = ls_index_write(LS_INDEX_CHAIN, 1, key, made.nodes, made.count, made.contents, made.content_count,
	                        &bytes, &err);
	if (status) {
		REQUIRE(status == LS_INVALID || status == LS_LIMIT);
	} else {
		REQUIRE(!ls_index_open(&index, bytes.bytes, bytes.length, NULL));
		REQUIRE(!ls_index_verify(&index, &err));
		write_tree(&index, made.count, 1);
	}
	ls_buffer_free(&bytes);
	for (uint32_t i = 0; i < made.count; i++)
		ls_buffer_free(&made.xattrs[i]);
}

/* ---- packs */

static void check_slot(const struct image *image, uint64_t nid, const struct ls_pack_slot *slot)
{
	struct erofs_inode_extended inode;
	struct erofs_chunk chunk;
	uint64_t position;

	inode = read_inode(image, nid, &position);
	memcpy(&chunk, bytes_at(image, position, sizeof(chunk)), sizeof(chunk));
	REQUIRE(S_ISREG(inode.mode) && inode.size == slot->size && inode.format >> 1 == EROFS_CHUNKED);
	REQUIRE(inode.data & EROFS_CHUNK_INDEXES);
	REQUIRE((uint64_t)image->block_bytes << (inode.data & 0x1f) >= slot->size);
	REQUIRE(chunk.device == 1 && (uint64_t)chunk.block * LS_PACK_BLOCK_BYTES == slot->offset);
}

static void check_pack(const struct image *image, uint32_t pack, const struct ls_pack_slot *slots, uint32_t count)
{
	char name[EROFS_DECIMAL_BYTES + 1] = "p";
	size_t length = 1u + erofs_decimal(name + 1, pack);
	struct listing root = {.image = image}, directory = {.image = image};
	struct erofs_dirent dirent;
	uint32_t seen = 0;

	root.inode = read_inode(image, image->super.root_nid, &root.tail);
	while (next_entry(&root, &dirent))
		if (is_named(&root, name, length))
			break;
	REQUIRE(is_named(&root, name, length));
	directory.inode = read_inode(image, dirent.nid, &directory.tail);
	while (next_entry(&directory, &dirent)) {
		char digits[EROFS_DECIMAL_BYTES + 1] = "";
		unsigned long number;

		if (directory.name[0] == '.')
			continue;
		REQUIRE(directory.name_length <= EROFS_DECIMAL_BYTES);
		memcpy(digits, directory.name, directory.name_length);
		number = strtoul(digits, NULL, 10);
		REQUIRE(number < count);
		check_slot(image, dirent.nid, &slots[number]);
		seen++;
	}
	REQUIRE(seen == count);
}

static void write_pack(struct input *input)
{
	static struct ls_pack_slot slots[1200];
	uint32_t pack = (uint32_t)take(input, 4), count = 0, copies = 0;
	uint64_t bytes = take(input, 6) / LS_PACK_BLOCK_BYTES * LS_PACK_BLOCK_BYTES;
	struct ls_buffer out = {0};
	struct ls_error err;
	struct image image;
	int status;

	while ((copies || input->at < input->end) && count < sizeof(slots) / sizeof(*slots)) {
		if (!copies) {
			copies = 1 + (uint32_t)take(input, 1);
			copies = copies < 200 ? 1 : copies * 3;
			slots[count] = (struct ls_pack_slot){.offset = take(input, 5), .size = take(input, 1)};
			if (slots[count].offset % 16)
				slots[count].offset = slots[count].offset / 16 * LS_PACK_BLOCK_BYTES;
			if (slots[count].size > 250)
				slots[count].size = take(input, 5);
		} else {
			slots[count] = slots[count - 1];
		}
		copies--;
		count++;
	}
	status = ls_erofs_write_pack(pack, bytes, slots, count, &out, &err);
	REQUIRE(!status || status == LS_INVALID || status == LS_LIMIT);
	if (!status) {
		open_image(&image, &out, 9);
		check_pack(&image, pack, slots, count);
	}
	ls_buffer_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
	struct input input = {data + 1, data + length};

	if (!length)
		return 0;
	if (data[0] % 3 == 0)
		write_index_given(data + 1, length - 1, data[0]);
	else if (data[0] % 3 == 1)
		write_described(&input);
	else
		write_pack(&input);
	return 0;
}
