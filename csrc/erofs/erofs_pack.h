/* The EROFS image that names the contents of a pack. */
#ifndef LS_EROFS_PACK_H
#define LS_EROFS_PACK_H

#include "base/buffer.h"
#include "content/contents.h"

/* The index of pack `pack`: directory "/p<pack>" with a regular file named by its decimal number for each slot,
 * block size LS_PACK_BLOCK_BYTES, one extra device of `pack_bytes` (a multiple of it). Mounted without that
 * device, contents are past the end in the same way. LS_INVALID for a slot that is
 * empty, unaligned or outside the pack; LS_LIMIT for a
 * pack of 2 TiB or a slot of 4 GiB. */
int ls_erofs_write_pack(uint32_t pack, uint64_t pack_bytes, const struct ls_pack_slot *slots, uint32_t slot_count,
                        struct ls_buffer *out, struct ls_error *err);

#endif
