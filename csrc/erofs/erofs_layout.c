#include <string.h>

#include "erofs_layout.h"

#define DEVICE_MAJOR_MAX 0xfffu
#define DEVICE_MINOR_MAX 0xfffffu

static int check_file(const struct ls_index *index, uint32_t i, struct ls_error *err)
{
	const struct ls_record *record = &index->records[i];
	uint64_t content_size = 0;

	if (record->data != LS_NONE) {
		if (record->data >= index->header->content_count)
			return erofs_refuse(index, i, LS_CORRUPT, err, "its content number %u is not in the index",
			                    record->data);
		content_size = index->contents[record->data].size;
	}
	if (record->size != content_size)
		return erofs_refuse(index, i, LS_CORRUPT, err, "its size of %llu bytes is not its content's %llu",
		                    (unsigned long long)record->size, (unsigned long long)content_size);
	if (erofs_chunk_shift(record->size, LS_EROFS_BLOCK_BITS) > EROFS_CHUNK_SHIFT_MAX)
		return erofs_refuse(index, i, LS_LIMIT, err,
		                    "its size of %llu bytes is more than the 8 TiB of an EROFS chunk",
		                    (unsigned long long)record->size);
	return LS_OK;
}

static int check_symlink(const struct ls_index *index, uint32_t i, struct ls_error *err)
{
	const struct ls_record *record = &index->records[i];
	const char *target;

	if (!record->size)
		return erofs_refuse(index, i, LS_INVALID, err,
		                    "its target is empty, which no symbolic link of Linux may be");
	if (record->size > EROFS_SYMLINK_BYTES)
		return erofs_refuse(index, i, LS_LIMIT, err,
		                    "its target of %llu bytes is longer than the %u that Linux follows",
		                    (unsigned long long)record->size, EROFS_SYMLINK_BYTES);
	return ls_index_string(index, record->data, record->size, &target, err);
}

static int check_device(const struct ls_index *index, uint32_t i, struct ls_error *err)
{
	uint32_t major = (uint32_t)(index->records[i].size >> 32), minor = (uint32_t)index->records[i].size;

	if (major > DEVICE_MAJOR_MAX || minor > DEVICE_MINOR_MAX)
		return erofs_refuse(index, i, LS_LIMIT, err,
		                    "its device number %u:%u is beyond the 12 and 20 bits of Linux", major, minor);
	return LS_OK;
}

static int check_links(const struct ls_index *index, uint32_t i, struct ls_error *err)
{
	const struct ls_record *record = &index->records[i];
	const struct ls_record *first;

	if (record->flags & (LS_RECORD_WHITEOUT | LS_RECORD_LOWER_LINK))
		return erofs_refuse(index, i, LS_CORRUPT, err, "a whiteout or lower link stands in a chain's index");
	if (record->inode > i)
		return erofs_refuse(index, i, LS_CORRUPT, err, "its inode's first link stands behind it");
	first = &index->records[record->inode];
	if (first->inode != record->inode || (first->mode & S_IFMT) != (record->mode & S_IFMT) ||
	    erofs_is_hidden(first) != erofs_is_hidden(record))
		return erofs_refuse(index, i, LS_CORRUPT, err, "its inode's first link is none");
	if (!S_ISDIR(record->mode) && !record->count)
		return erofs_refuse(index, i, LS_CORRUPT, err, "its inode has no links");
	return LS_OK;
}

/* Records are in breadth-first order, so the children of one directory begin where those of the one before ended. */
static int check_children(const struct ls_index *index, uint32_t i, uint32_t *next_child, struct ls_error *err)
{
	const struct ls_record *record = &index->records[i];

	if (record->inode != i)
		return erofs_refuse(index, i, LS_CORRUPT, err, "a directory has a hard link");
	if (!record->count)
		return LS_OK;
	if (record->data != *next_child || record->count > index->header->record_count - *next_child ||
	    record->data <= i)
		return erofs_refuse(index, i, LS_CORRUPT, err, "its children are not where they must be");
	for (uint32_t child = record->data; child < record->data + record->count; child++)
		if (index->records[child].parent != i)
			return erofs_refuse(index, child, LS_CORRUPT, err, "its parent is another directory");
	*next_child += record->count;
	return LS_OK;
}

static int check_record(const struct ls_index *index, uint32_t i, uint32_t *next_child, struct ls_error *err)
{
	const struct ls_record *record = &index->records[i];
	int status = check_links(index, i, err);

	if (status)
		return status;
	if (record->mode > UINT16_MAX || record->mtime_nanoseconds > 999999999)
		return erofs_refuse(index, i, LS_CORRUPT, err, "mode %o or nanoseconds %u are none", record->mode,
		                    record->mtime_nanoseconds);
	switch (record->mode & S_IFMT) {
	case S_IFREG:
		return check_file(index, i, err);
	case S_IFDIR:
		return check_children(index, i, next_child, err);
	case S_IFLNK:
		return check_symlink(index, i, err);
	case S_IFCHR:
	case S_IFBLK:
		return check_device(index, i, err);
	case S_IFIFO:
		return LS_OK;
	}
	return erofs_refuse(index, i, LS_CORRUPT, err, "mode %o is that of no type that a layer can have",
	                    record->mode);
}

static int check_index(const struct ls_index *index, struct ls_error *err)
{
	uint32_t next_child = 1;
	int status;

	if (index->header->kind != LS_INDEX_CHAIN)
		return ls_fail(err, LS_INVALID,
		               "writing an EROFS image: the index is a layer's: merge it to a chain first");
	if (!index->header->record_count || !S_ISDIR(index->records[0].mode) || index->records[0].parent)
		return ls_fail(err, LS_CORRUPT,
		               "writing an EROFS image: the index does not begin with a root directory");
	for (uint32_t i = 0; i < index->header->record_count; i++) {
		status = check_record(index, i, &next_child, err);
		if (status)
			return status;
	}
	if (next_child != index->header->record_count)
		return ls_fail(err, LS_CORRUPT, "writing an EROFS image: %u records of the index are in no directory",
		               index->header->record_count - next_child);
	return LS_OK;
}

static void count_inodes_and_subdirectories(struct erofs_tree *tree)
{
	const struct ls_record *records = tree->index->records;

	for (uint32_t i = 0; i < tree->index->header->record_count; i++) {
		tree->inode_count += (uint64_t)erofs_is_inode(tree, i);
		if (i && S_ISDIR(records[i].mode))
			tree->places[records[i].parent].subdirectories++;
	}
}

static int size_xattrs(struct erofs_tree *tree, struct ls_error *err)
{
	uint32_t count = tree->index->header->record_count;
	int status = LS_OK;

	for (uint32_t i = 0; i < count && !status; i++)
		if (erofs_is_inode(tree, i))
			status = erofs_xattrs_collect(tree->xattrs, i, &tree->places[i].xattr_set, err);
	if (!status)
		status = erofs_xattrs_share(tree->xattrs, err);
	for (uint32_t i = 0; i < count && !status; i++)
		if (erofs_is_inode(tree, i))
			tree->places[i].xattr_bytes = erofs_xattrs_size(tree->xattrs, tree->places[i].xattr_set,
			                                                erofs_content(&tree->index->records[i]));
	return status;
}

/* A last block of at most half a block goes behind the inode, where it costs its bytes and is read with it; a larger
 * one would leave gaps before inodes that must not be parted from their tails. */
static void cut_off_tail(struct erofs_place *place)
{
	uint32_t last = place->size % LS_EROFS_BLOCK_BYTES;

	place->blocks = (uint32_t)(place->size / LS_EROFS_BLOCK_BYTES);
	if (last <= LS_EROFS_BLOCK_BYTES / 2)
		place->tail = last;
	else
		place->blocks++;
}

static int size_directory(const struct erofs_tree *tree, uint32_t record, struct ls_error *err)
{
	struct erofs_dir_size size = {.block_bytes = LS_EROFS_BLOCK_BYTES};
	struct erofs_tree_cursor cursor;
	struct erofs_dir_entry entry;
	int status;

	erofs_tree_cursor_init(tree, &cursor, record);
	while (!(status = erofs_tree_next(tree, &cursor, &entry, err)) && entry.name)
		erofs_dir_size_add(&size, entry.name_length);
	tree->places[record].size = size.full * LS_EROFS_BLOCK_BYTES + size.last;
	return status;
}

static int size_directories_and_symlinks(struct erofs_tree *tree, struct ls_error *err)
{
	for (uint32_t i = 0; i < tree->index->header->record_count; i++) {
		const struct ls_record *record = &tree->index->records[i];
		int status = S_ISDIR(record->mode) ? size_directory(tree, i, err) : LS_OK;

		if (status)
			return status;
		if (S_ISLNK(record->mode))
			tree->places[i].size = record->size;
		cut_off_tail(&tree->places[i]);
	}
	return LS_OK;
}

static int crosses_block(uint64_t position, uint64_t bytes)
{
	return position / LS_EROFS_BLOCK_BYTES != (position + bytes - 1) / LS_EROFS_BLOCK_BYTES;
}

/* An inode does not cross a block, so that one read gets it, and a tail must not. */
static void place_inode(struct erofs_place *place, uint64_t position)
{
	uint64_t head = sizeof(struct erofs_inode_extended) + place->xattr_bytes;

	position = erofs_round_up(position, EROFS_NID_BYTES);
	if (crosses_block(position, sizeof(struct erofs_inode_extended)))
		position = erofs_round_up(position, LS_EROFS_BLOCK_BYTES);
	if (place->tail && crosses_block(position + head, place->tail)) {
		if (head + place->tail <= LS_EROFS_BLOCK_BYTES) {
			position = erofs_round_up(position, LS_EROFS_BLOCK_BYTES);
		} else {
			place->tail = 0;
			place->blocks++;
		}
	}
	place->position = position;
}

static uint64_t place_inodes(struct erofs_tree *tree)
{
	uint64_t position = EROFS_SUPER_OFFSET + sizeof(struct erofs_super);

	for (uint32_t i = 0; i < tree->index->header->record_count; i++) {
		struct erofs_place *place = &tree->places[i];

		if (!erofs_is_inode(tree, i))
			continue;
		place_inode(place, position);
		position = place->position + sizeof(struct erofs_inode_extended) + place->xattr_bytes + place->tail;
		if (erofs_content(&tree->index->records[i]) != LS_NONE)
			position += sizeof(uint32_t);
	}
	return position;
}

static uint64_t place_shared_xattrs(struct erofs_tree *tree, uint64_t position)
{
	tree->shared_position = erofs_round_up(position, sizeof(uint32_t));
	erofs_xattrs_place_shared(tree->xattrs, tree->shared_position % LS_EROFS_BLOCK_BYTES);
	return tree->shared_position + erofs_xattrs_shared_bytes(tree->xattrs);
}

static int place_blocks(struct erofs_tree *tree, uint64_t position, struct ls_error *err)
{
	uint64_t block = erofs_round_up(position, LS_EROFS_BLOCK_BYTES) / LS_EROFS_BLOCK_BYTES;

	for (uint32_t i = 0; i < tree->index->header->record_count; i++) {
		if (!erofs_is_inode(tree, i))
			continue;
		tree->places[i].block = (uint32_t)block;
		block += tree->places[i].blocks;
		if (block >= LS_EROFS_NOWHERE_BLOCK)
			return ls_fail(err, LS_LIMIT,
			               "writing an EROFS image: the tree needs more than %u blocks of %u bytes",
			               LS_EROFS_NOWHERE_BLOCK, LS_EROFS_BLOCK_BYTES);
	}
	tree->image_bytes = block * LS_EROFS_BLOCK_BYTES;
	return LS_OK;
}

int erofs_lay_out(struct erofs_tree *tree, struct ls_error *err)
{
	uint64_t position;
	int status = check_index(tree->index, err);

	if (status)
		return status;
	count_inodes_and_subdirectories(tree);
	status = size_xattrs(tree, err);
	if (!status)
		status = size_directories_and_symlinks(tree, err);
	if (status)
		return status;
	position = place_inodes(tree);
	position = place_shared_xattrs(tree, position);
	return place_blocks(tree, position, err);
}
