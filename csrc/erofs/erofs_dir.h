/* The entries of an EROFS directory, cut into blocks. An entry is its struct erofs_dirent and its name; each block
 * holds whole entries only, all dirents first. The caller gives entries sorted bytewise by name, "." and ".."
 * among them, the same ones for sizing and for writing. */
#ifndef LS_EROFS_DIR_H
#define LS_EROFS_DIR_H

#include "erofs_format.h"

#define EROFS_DIR_BLOCK_MAX 4096u
#define EROFS_DIR_ENTRIES_MAX (EROFS_DIR_BLOCK_MAX / (sizeof(struct erofs_dirent) + 1) + 1)

struct erofs_dir_size {
	uint32_t block_bytes;
	uint64_t full; /* blocks before the last */
	uint32_t last; /* bytes used in the last one */
};

void erofs_dir_size_add(struct erofs_dir_size *size, size_t name_length);

struct erofs_dir_entry {
	const char *name; /* borrowed until its block is written */
	uint64_t nid;
	uint16_t name_length;
	uint8_t type;
};

struct erofs_dir_writer {
	uint32_t block_bytes;
	uint8_t *blocks; /* where the full blocks go, zeroed */
	uint8_t *last;   /* where the last one goes, NULL: after the full ones */
	uint32_t used;
	uint32_t count;
	struct erofs_dir_entry entries[EROFS_DIR_ENTRIES_MAX];
};

void erofs_dir_writer_init(struct erofs_dir_writer *writer, uint32_t block_bytes, uint8_t *blocks, uint8_t *last);
void erofs_dir_writer_add(struct erofs_dir_writer *writer, const struct erofs_dir_entry *entry);
void erofs_dir_writer_finish(struct erofs_dir_writer *writer);

#endif
