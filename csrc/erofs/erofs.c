/* The tree image of a chain.
 *
 * A character device 0:0 is overlayfs's whiteout, in whatever layer it stands. An image that has one literally
 * cannot be shown as it is through an overlay: no lower layer can hold a file of that kind that is not taken for
 * one. It is therefore left out: its name is neither listed nor found. Engines that unpack layers into directories
 * and overlay them (docker's overlay2, podman) show the same, except that theirs also hides what lies below it;
 * here the merge has settled that already, as it does for any other file. */
#include "erofs.h"

#include <stdlib.h>
#include <string.h>

#include "erofs_layout.h"
#include "erofs_super.h"
#include "erofs_tree.h"

/* As the kernel's new_encode_dev does it. */
static uint32_t encode_device(uint64_t device)
{
	uint32_t major = (uint32_t)(device >> 32), minor = (uint32_t)device;

	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

static void describe_data(const struct erofs_place *place, const struct ls_record *record,
                          struct erofs_inode_extended *inode)
{
	enum erofs_layout layout = EROFS_FLAT_PLAIN;

	switch (record->mode & S_IFMT) {
	case S_IFREG:
		inode->size = record->size;
		if (record->data != LS_NONE) {
			layout = EROFS_CHUNKED;
			inode->data = erofs_chunk_shift(record->size, LS_EROFS_BLOCK_BITS);
		}
		break;
	case S_IFDIR:
	case S_IFLNK:
		inode->size = place->size;
		inode->data = place->block;
		layout = place->tail ? EROFS_FLAT_INLINE : EROFS_FLAT_PLAIN;
		break;
	case S_IFCHR:
	case S_IFBLK:
		inode->data = encode_device(record->size);
		break;
	}
	inode->format = EROFS_INODE_FORMAT(layout, 1);
}

static void write_inode(const struct erofs_tree *tree, uint32_t i, uint8_t *image)
{
	const struct ls_record *record = &tree->index->records[i];
	const struct erofs_place *place = &tree->places[i];
	uint8_t *out = image + place->position;
	uint32_t nowhere = LS_EROFS_NOWHERE_BLOCK;
	struct erofs_inode_extended inode = {
	    .mode = (uint16_t)record->mode,
	    .ino = (uint32_t)(place->position / EROFS_NID_BYTES),
	    .uid = record->uid,
	    .gid = record->gid,
	    .mtime_seconds = record->mtime_seconds,
	    .mtime_nanoseconds = record->mtime_nanoseconds,
	    .links = S_ISDIR(record->mode) ? 2 + place->subdirectories : record->count,
	};

	describe_data(place, record, &inode);
	if (place->xattr_bytes)
		inode.xattr_count = (uint16_t)((place->xattr_bytes - sizeof(struct erofs_xattr_header)) / 4 + 1);
	memcpy(out, &inode, sizeof(inode));
	out += sizeof(inode);
	if (place->xattr_bytes)
		erofs_xattrs_write(tree->xattrs, place->xattr_set, erofs_content(record), out);
	if (erofs_content(record) != LS_NONE)
		memcpy(out + place->xattr_bytes, &nowhere, sizeof(nowhere));
}

static uint8_t *tail_of(const struct erofs_place *place, uint8_t *image)
{
	return image + place->position + sizeof(struct erofs_inode_extended) + place->xattr_bytes;
}

static int write_directory(const struct erofs_tree *tree, uint32_t i, uint8_t *image, struct ls_error *err)
{
	const struct erofs_place *place = &tree->places[i];
	struct erofs_dir_writer writer;
	struct erofs_tree_cursor cursor;
	struct erofs_dir_entry entry;
	int status;

	erofs_dir_writer_init(&writer, LS_EROFS_BLOCK_BYTES, image + (uint64_t)place->block * LS_EROFS_BLOCK_BYTES,
	                      place->tail ? tail_of(place, image) : NULL);
	erofs_tree_cursor_init(tree, &cursor, i);
	while (!(status = erofs_tree_next(tree, &cursor, &entry, err)) && entry.name)
		erofs_dir_writer_add(&writer, &entry);
	if (!status)
		erofs_dir_writer_finish(&writer);
	return status;
}

static int write_symlink(const struct erofs_tree *tree, uint32_t i, uint8_t *image, struct ls_error *err)
{
	const struct erofs_place *place = &tree->places[i];
	uint8_t *out = place->tail ? tail_of(place, image) : image + (uint64_t)place->block * LS_EROFS_BLOCK_BYTES;
	const char *target;
	int status = ls_index_string(tree->index, tree->index->records[i].data, place->size, &target, err);

	if (!status)
		memcpy(out, target, place->size);
	return status;
}

static int write_tree(const struct erofs_tree *tree, uint8_t *image, struct ls_error *err)
{
	for (uint32_t i = 0; i < tree->index->header->record_count; i++) {
		uint32_t mode = tree->index->records[i].mode;
		int status = LS_OK;

		if (!erofs_is_inode(tree, i))
			continue;
		write_inode(tree, i, image);
		if (S_ISDIR(mode))
			status = write_directory(tree, i, image, err);
		else if (S_ISLNK(mode))
			status = write_symlink(tree, i, image, err);
		if (status)
			return status;
	}
	erofs_xattrs_write_shared(tree->xattrs, image + tree->shared_position);
	return LS_OK;
}

static int seal(const struct erofs_tree *tree, struct ls_buffer *image, struct ls_error *err)
{
	struct erofs_super super = {
	    .compat = EROFS_COMPAT_MTIME | EROFS_COMPAT_XATTR_FILTER,
	    .incompat = EROFS_INCOMPAT_CHUNKS,
	    .block_bits = LS_EROFS_BLOCK_BITS,
	    .root_nid = (uint16_t)erofs_inode_number(tree, 0),
	    .inodes = tree->inode_count,
	    .xattr_block = (uint32_t)(tree->shared_position / LS_EROFS_BLOCK_BYTES),
	};

	return ls_erofs_seal(image, &super, err);
}

int ls_erofs_write_tree(const struct ls_index *chain, const struct ls_location *locations, struct ls_buffer *out,
                        struct ls_error *err)
{
	struct erofs_tree tree = {.index = chain, .locations = locations};
	int status = erofs_xattrs_new(&tree.xattrs, chain, locations, err);

	if (status)
		goto done;
	tree.places = calloc((size_t)chain->header->record_count + 1, sizeof(*tree.places));
	if (!tree.places) {
		status = ls_fail(err, LS_NO_MEMORY, "writing an EROFS image: out of memory for %u records",
		                 chain->header->record_count);
		goto done;
	}
	status = erofs_lay_out(&tree, err);
	if (!status)
		status = ls_buffer_append(out, NULL, tree.image_bytes, err);
	if (!status)
		status = write_tree(&tree, out->bytes, err);
	if (!status)
		status = seal(&tree, out, err);
done:
	erofs_xattrs_free(tree.xattrs);
	free(tree.places);
	return status;
}
