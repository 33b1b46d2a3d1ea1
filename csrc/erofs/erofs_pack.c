/* The image of a pack's index. Its files are ranges of the pack, which is the image's one extra device; nothing but
 * their sizes and places differ, so compact inodes hold them. */
#include "erofs_pack.h"

#include <string.h>
#include <sys/stat.h>

#include "erofs_decimal.h"
#include "erofs_dir.h"
#include "erofs_super.h"

#define PACK_BLOCK_BITS 9
#define PACK_DEVICE 1 /* number of the first extra device */
#define PACK_SLOT_STRIDE 64u

/* Mounted without its device, the kernel takes the image itself for a device that begins at this block: 1 TiB on,
 * so that contents read as EIO and not as bytes of the image. */
#define PACK_NOWHERE_BLOCK 0x7ffffff0u

_Static_assert(1 << PACK_BLOCK_BITS == LS_PACK_BLOCK_BYTES, "one block size");
_Static_assert(PACK_SLOT_STRIDE >= sizeof(struct erofs_inode_compact) + sizeof(struct erofs_chunk), "a slot's inode");
_Static_assert(PACK_SLOT_STRIDE % EROFS_NID_BYTES == 0, "inode numbers");

/* superblock | device table | root and its entries | pack directory | slots | blocks of the pack directory */
struct pack_layout {
	uint32_t slot_count;
	char name[1 + EROFS_DECIMAL_BYTES];
	uint16_t name_length;
	uint32_t root_bytes;
	uint64_t root;
	uint64_t directory;
	uint64_t slots;
	uint64_t blocks;
	uint64_t directory_bytes;
	uint64_t end;
};

/* Numbers below `count` in the order of their decimal spellings: 0, 1, 10, 100, 101, ..., 11, ..., 2, ... */
static uint32_t next_in_decimal_order(uint32_t number, uint32_t count)
{
	if (number && (uint64_t)number * 10 < count)
		return number * 10;
	while (number && (number % 10 == 9 || number + 1 >= count))
		number /= 10;
	return number + 1;
}

static int check_slots(uint64_t pack_bytes, const struct ls_pack_slot *slots, uint32_t slot_count, struct ls_error *err)
{
	if (pack_bytes % LS_PACK_BLOCK_BYTES)
		return ls_fail(err, LS_INVALID, "indexing a pack: its size of %llu bytes is no multiple of %d",
		               (unsigned long long)pack_bytes, LS_PACK_BLOCK_BYTES);
	if (pack_bytes / LS_PACK_BLOCK_BYTES > UINT32_MAX)
		return ls_fail(err, LS_LIMIT,
		               "indexing a pack: its size of %llu bytes exceeds 2^32 - 1 blocks of %d bytes",
		               (unsigned long long)pack_bytes, LS_PACK_BLOCK_BYTES);
	for (uint32_t i = 0; i < slot_count; i++) {
		const struct ls_pack_slot *slot = &slots[i];

		if (slot->offset % LS_PACK_BLOCK_BYTES || !slot->size || slot->offset > pack_bytes ||
		    slot->size > pack_bytes - slot->offset)
			return ls_fail(err, LS_INVALID,
			               "indexing a pack: slot %u (%llu bytes at %llu) is empty, unaligned or outside "
			               "the pack's %llu bytes",
			               i, (unsigned long long)slot->size, (unsigned long long)slot->offset,
			               (unsigned long long)pack_bytes);
		if (slot->size > UINT32_MAX)
			return ls_fail(err, LS_LIMIT,
			               "indexing a pack: slot %u has %llu bytes, more than the 2^32 - 1 of a slot: "
			               "make it an object",
			               i, (unsigned long long)slot->size);
	}
	return LS_OK;
}

static int place_everything(struct pack_layout *layout, struct ls_error *err)
{
	struct erofs_dir_size size = {.block_bytes = LS_PACK_BLOCK_BYTES};
	char name[EROFS_DECIMAL_BYTES];

	layout->root_bytes = (uint32_t)(3 * sizeof(struct erofs_dirent) + strlen("...") + layout->name_length);
	layout->root = EROFS_SUPER_OFFSET + sizeof(struct erofs_super) + sizeof(struct erofs_device);
	layout->directory =
	    erofs_round_up(layout->root + sizeof(struct erofs_inode_compact) + layout->root_bytes, EROFS_NID_BYTES);
	layout->slots = layout->directory + sizeof(struct erofs_inode_compact);
	layout->blocks =
	    erofs_round_up(layout->slots + (uint64_t)layout->slot_count * PACK_SLOT_STRIDE, LS_PACK_BLOCK_BYTES);
	erofs_dir_size_add(&size, strlen("."));
	erofs_dir_size_add(&size, strlen(".."));
	for (uint32_t i = 0, number = 0; i < layout->slot_count; i++) {
		erofs_dir_size_add(&size, erofs_decimal(name, number));
		number = next_in_decimal_order(number, layout->slot_count);
	}
	layout->directory_bytes = size.full * LS_PACK_BLOCK_BYTES + size.last;
	layout->end = erofs_round_up(layout->blocks + layout->directory_bytes, LS_PACK_BLOCK_BYTES);
	if (layout->directory_bytes > UINT32_MAX)
		return ls_fail(err, LS_LIMIT, "indexing a pack: the directory of %u slots exceeds 4 GiB",
		               layout->slot_count);
	return LS_OK;
}

static void write_root(const struct pack_layout *layout, uint8_t *image)
{
	uint64_t nid = layout->root / EROFS_NID_BYTES;
	struct erofs_inode_compact inode = {
	    .format = EROFS_INODE_FORMAT(EROFS_FLAT_INLINE, 0),
	    .mode = S_IFDIR | 0500,
	    .links = 3,
	    .size = layout->root_bytes,
	    .ino = (uint32_t)nid,
	};
	struct erofs_dir_writer writer;

	erofs_dir_writer_init(&writer, LS_PACK_BLOCK_BYTES, NULL, image + layout->root + sizeof(inode));
	memcpy(image + layout->root, &inode, sizeof(inode));
	erofs_dir_writer_add(&writer, &(struct erofs_dir_entry){".", nid, 1, EROFS_TYPE_DIRECTORY});
	erofs_dir_writer_add(&writer, &(struct erofs_dir_entry){"..", nid, 2, EROFS_TYPE_DIRECTORY});
	erofs_dir_writer_add(&writer, &(struct erofs_dir_entry){layout->name, layout->directory / EROFS_NID_BYTES,
	                                                        layout->name_length, EROFS_TYPE_DIRECTORY});
	erofs_dir_writer_finish(&writer);
}

static void write_directory_inode(const struct pack_layout *layout, uint8_t *image)
{
	struct erofs_inode_compact inode = {
	    .format = EROFS_INODE_FORMAT(EROFS_FLAT_PLAIN, 0),
	    .mode = S_IFDIR | 0500,
	    .links = 2,
	    .size = (uint32_t)layout->directory_bytes,
	    .data = (uint32_t)(layout->blocks / LS_PACK_BLOCK_BYTES),
	    .ino = (uint32_t)(layout->directory / EROFS_NID_BYTES),
	};

	memcpy(image + layout->directory, &inode, sizeof(inode));
}

static void write_directory_entries(const struct pack_layout *layout, uint8_t *image)
{
	/* Names live until their block is written, and a block has fewer entries than this. */
	char names[EROFS_DIR_ENTRIES_MAX][EROFS_DECIMAL_BYTES];
	struct erofs_dir_writer writer;
	struct erofs_dir_entry entry = {".", layout->directory / EROFS_NID_BYTES, 1, EROFS_TYPE_DIRECTORY};

	erofs_dir_writer_init(&writer, LS_PACK_BLOCK_BYTES, image + layout->blocks, NULL);
	erofs_dir_writer_add(&writer, &entry);
	entry = (struct erofs_dir_entry){"..", layout->root / EROFS_NID_BYTES, 2, EROFS_TYPE_DIRECTORY};
	erofs_dir_writer_add(&writer, &entry);
	for (uint32_t i = 0, number = 0; i < layout->slot_count; i++) {
		char *name = names[i % EROFS_DIR_ENTRIES_MAX];

		entry.name_length = erofs_decimal(name, number);
		entry.name = name;
		entry.nid = (layout->slots + (uint64_t)number * PACK_SLOT_STRIDE) / EROFS_NID_BYTES;
		entry.type = EROFS_TYPE_REGULAR;
		erofs_dir_writer_add(&writer, &entry);
		number = next_in_decimal_order(number, layout->slot_count);
	}
	erofs_dir_writer_finish(&writer);
}

static void write_slots(const struct pack_layout *layout, const struct ls_pack_slot *slots, uint8_t *image)
{
	for (uint32_t i = 0; i < layout->slot_count; i++) {
		uint8_t *place = image + layout->slots + (uint64_t)i * PACK_SLOT_STRIDE;
		struct erofs_inode_compact inode = {
		    .format = EROFS_INODE_FORMAT(EROFS_CHUNKED, 0),
		    .mode = S_IFREG | 0400,
		    .links = 1,
		    .size = (uint32_t)slots[i].size,
		    .data = EROFS_CHUNK_INDEXES | erofs_chunk_shift(slots[i].size, PACK_BLOCK_BITS),
		    .ino = (uint32_t)((uint64_t)(place - image) / EROFS_NID_BYTES),
		};
		struct erofs_chunk chunk = {.device = PACK_DEVICE,
		                            .block = (uint32_t)(slots[i].offset / LS_PACK_BLOCK_BYTES)};

		memcpy(place, &inode, sizeof(inode));
		memcpy(place + sizeof(inode), &chunk, sizeof(chunk));
	}
}

static void write_device_table(uint64_t pack_bytes, uint8_t *image)
{
	struct erofs_device device = {
	    .blocks = (uint32_t)(pack_bytes / LS_PACK_BLOCK_BYTES),
	    .mapped_block = PACK_NOWHERE_BLOCK,
	};

	memcpy(image + EROFS_SUPER_OFFSET + sizeof(struct erofs_super), &device, sizeof(device));
}

static int seal(const struct pack_layout *layout, struct ls_buffer *image, struct ls_error *err)
{
	struct erofs_super super = {
	    .compat = EROFS_COMPAT_MTIME,
	    .incompat = EROFS_INCOMPAT_CHUNKS | EROFS_INCOMPAT_DEVICES,
	    .block_bits = PACK_BLOCK_BITS,
	    .root_nid = (uint16_t)(layout->root / EROFS_NID_BYTES),
	    .inodes = (uint64_t)layout->slot_count + 2,
	    .devices = 1,
	    .device_slot = (EROFS_SUPER_OFFSET + sizeof(super)) / sizeof(struct erofs_device),
	};

	return ls_erofs_seal(image, &super, err);
}

int ls_erofs_write_pack(uint32_t pack, uint64_t pack_bytes, const struct ls_pack_slot *slots, uint32_t slot_count,
                        struct ls_buffer *out, struct ls_error *err)
{
	struct pack_layout layout = {.slot_count = slot_count, .name = "p"};
	int status;

	layout.name_length = 1 + erofs_decimal(layout.name + 1, pack);
	status = check_slots(pack_bytes, slots, slot_count, err);
	if (!status)
		status = place_everything(&layout, err);
	if (!status)
		status = ls_buffer_append(out, NULL, layout.end, err);
	if (status)
		return status;
	write_device_table(pack_bytes, out->bytes);
	write_root(&layout, out->bytes);
	write_directory_inode(&layout, out->bytes);
	write_slots(&layout, slots, out->bytes);
	write_directory_entries(&layout, out->bytes);
	return seal(&layout, out, err);
}
