/* What the units of the tar walk share: tar.c (the walk), tar_header.c (a header block to an entry),
 * tar_pax.c (extended headers), tar_sparse.c (the four sparse forms). Nothing here is for callers. */
#ifndef LS_TAR_IMPL_H
#define LS_TAR_IMPL_H

#include "base/buffer.h"
#include "tar.h"
#include "tar_format.h"

/* What the next byte belongs to. All but TAR_DATA are RAW bytes. */
enum tar_stage {
	TAR_HEADER,     /* a header block, or the end marker */
	TAR_EXTENDED,   /* `left` bytes of the body of 'x', 'g', 'L' or 'K' */
	TAR_OLD_SPARSE, /* an extension block of 'S' */
	TAR_SPARSE_MAP, /* a block of the map of GNU sparse 1.0 */
	TAR_READY,      /* no byte: the entry is complete and waits to be handed out */
	TAR_DATA,       /* `left` bytes of content, then `padding` */
	TAR_SKIP,       /* `left` bytes of padding or of a member that is passed over */
	TAR_END,        /* after the end marker */
};

enum tar_number { TAR_NUMBER_OK, TAR_NUMBER_GARBAGE, TAR_NUMBER_RANGE };

/* Where the values that an entry can take from extended headers are kept. The last two are GNU's 'L' and 'K'. */
enum tar_key {
	TAR_KEY_PATH,
	TAR_KEY_LINKPATH,
	TAR_KEY_SIZE,
	TAR_KEY_UID,
	TAR_KEY_GID,
	TAR_KEY_MTIME,
	TAR_KEY_SPARSE_NAME,
	TAR_KEY_SPARSE_MAJOR,
	TAR_KEY_SPARSE_MINOR,
	TAR_KEY_SPARSE_SIZE,
	TAR_KEY_SPARSE_REALSIZE,
	TAR_KEY_SPARSE_NUMBLOCKS,
	TAR_KEY_SPARSE_MAP,
	TAR_KEY_LONG_NAME,
	TAR_KEY_LONG_LINK,
	TAR_KEYS,
};

struct tar_range {
	size_t offset; /* into the bytes of the values */
	size_t length;
};

struct tar_xattr_range {
	struct tar_range name;
	struct tar_range value;
};

/* Ranges, not pointers: `bytes` moves while it grows. */
struct tar_values {
	struct ls_buffer bytes; /* the bodies of the extended headers, one after another */
	uint32_t present;       /* bit 1 << key */
	struct tar_range value[TAR_KEYS];
};

struct tar_sparse {
	struct ls_tar_extent *extents;
	size_t count, capacity;
	size_t seen;           /* extents as the archive has them, empty ones too */
	uint64_t end;          /* of the last extent seen */
	uint64_t stored;       /* sum of the lengths */
	int has_offset;        /* 0.0: GNU.sparse.offset came and waits for its GNU.sparse.numbytes */
	uint64_t offset;       /* 0.0 and 1.0: of the extent whose length is to come */
	uint64_t numbers_left; /* 1.0: numbers of the map still to come */
	uint64_t numbers_read; /* 1.0 */
	uint64_t number;       /* 1.0: the one being read, and how many digits of it */
	unsigned digits;
};

struct ls_tar {
	struct ls_tar_limits limits;
	const uint8_t *at, *end; /* what is left of the span */
	uint64_t position;       /* of `at` in the archive */
	enum tar_stage stage;
	uint64_t left, padding;   /* see enum tar_stage */
	uint8_t block[TAR_BLOCK]; /* a block that straddles spans is gathered here */
	size_t gathered;

	int pending;              /* headers of an entry were read that is not yet handed out */
	uint64_t header_position; /* of the last header block */
	uint8_t extended_type;    /* of the header whose body is being read */
	size_t extended_start;    /* where that body begins in its values' bytes */
	struct tar_values local, global;
	struct tar_xattr_range *xattr_ranges;
	size_t xattr_count, xattr_range_capacity;

	struct ls_tar_entry entry;
	uint64_t entries;
	uint64_t member_size; /* what the headers say follows them: content, and before it the map of sparse 1.0 */
	uint8_t name[256];    /* the header's prefix, '/', name */
	uint8_t link[100];
	struct ls_xattr *xattrs;
	size_t xattr_capacity;
	struct tar_sparse sparse;
};

/* ls_fail with the header's position, and the entry's path once it is known, before the message. */
__attribute__((format(printf, 4, 5))) int tar_fail(const struct ls_tar *tar, struct ls_error *err, int status,
                                                   const char *format, ...);
/* The entry is complete: hand it out, then its content. */
void tar_ready(struct ls_tar *tar);

#endif
