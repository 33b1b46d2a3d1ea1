/* Seals an EROFS image: what comes last, when every other byte is in place. */
#ifndef LS_EROFS_SUPER_H
#define LS_EROFS_SUPER_H

#include "base/buffer.h"
#include "erofs_format.h"

/* Put `super` into the image with its block count, a UUID derived from the image's bytes, and the checksum.
 * `block_bits` is set; image->length is a multiple of the block size and the superblock's place is still zero.
 * LS_LIMIT when the blocks exceed 32 bits. */
int ls_erofs_seal(struct ls_buffer *image, struct erofs_super *super, struct ls_error *err);

#endif
