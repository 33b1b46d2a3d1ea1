/* Writes the new contents of one import: small ones one after another into a pack, larger ones each
 * to an object, known ones nowhere. Everything goes to the import's staging directory, which becomes
 * part of the store when the import commits (docs/format/pack.md). What is stored, and in which order, depends on the
 * contents and their order alone. Not safe for use by two threads at once. After an error only ls_contents_free is
 * allowed.
 *
 * A pack is: contents, each at a multiple of LS_PACK_BLOCK_BYTES and padded with zeros to it; then one
 * ls_pack_slot for each; then an ls_pack_footer. */
#ifndef LS_CONTENTS_H
#define LS_CONTENTS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"
#include "digests.h"
#include "hash/blake3.h"

#define LS_PACK_BLOCK_BYTES 512
#define LS_PACK_MAGIC "LSPACK\n"
#define LS_PACK_VERSION 1u

struct ls_pack_slot {
	uint64_t offset; /* bytes into the pack, a multiple of LS_PACK_BLOCK_BYTES */
	uint64_t size;   /* bytes, > 0 */
	uint8_t digest[32];
};
_Static_assert(sizeof(struct ls_pack_slot) == 48, "format");

struct ls_pack_footer {
	uint8_t magic[8];
	uint32_t version;
	uint32_t slot_count;
	uint64_t contents_bytes;  /* where the slots begin, a multiple of LS_PACK_BLOCK_BYTES */
	uint8_t slots_digest[32]; /* BLAKE3-256 of the slots */
	uint8_t footer_digest[8]; /* the first 8 bytes of the BLAKE3-256 of the footer's bytes before it */
};
_Static_assert(sizeof(struct ls_pack_footer) == 64, "format");

struct ls_contents;

struct ls_contents_counts {
	uint64_t new_count, new_bytes;     /* contents stored by this import */
	uint64_t known_count, known_bytes; /* contents that were stored already, here or by an earlier import */
};

/* `staging` is the descriptor of the staging directory (objects are made in it, named by 64 hex digits), `pack` that of the
 * empty pack file. Both and `digests` are borrowed; `ls_contents_free` may come after they are closed. Contents of at most
 * `pack_threshold` bytes go to the pack. */
int ls_contents_new(struct ls_contents **contents, int staging, int pack, const struct ls_digests *digests,
                    size_t pack_threshold, const struct ls_b3_kernel *kernel, struct ls_error *err);
void ls_contents_free(struct ls_contents *contents);

size_t ls_contents_pack_threshold(const struct ls_contents *contents);

/* With `expected`, the n-th content from now on, from 0, of those of more than `pack_threshold` bytes may be in the staging
 * directory already, as the file LS_CONTENTS_CLONE_NAME and n in decimal digits: a clone of where its bytes come from, or
 * another name of an object. Then its bytes, which have to be those of that file, are hashed and not written; LS_CORRUPT
 * where the sizes differ. */
#define LS_CONTENTS_CLONE_NAME "clone."
void ls_contents_expect_clones(struct ls_contents *contents, int expected);

/* Hash `n` contents and store those that are new. Digest i is written to out + 32 * i. */
int ls_contents_put_many(struct ls_contents *contents, const uint8_t *const *in, const size_t *length, size_t n,
                         uint8_t *out, struct ls_error *err);

/* One content that arrives in pieces: begin, then data and holes in order, then end, which gives its digest.
 * It is written to the staging directory as it comes, holes left as holes, and dropped at the end if it is known. Begin
 * drops a content that was never ended. A hole is hashed as zeros: its length is time, and for the caller to bound. */
int ls_contents_stream_begin(struct ls_contents *contents, struct ls_error *err);
int ls_contents_stream_data(struct ls_contents *contents, const uint8_t *bytes, size_t length, struct ls_error *err);
void ls_contents_stream_hole(struct ls_contents *contents, uint64_t length);
int ls_contents_stream_end(struct ls_contents *contents, uint8_t digest[32], struct ls_error *err);

/* Write the slots and the footer of the pack, which has the number `pack` in the store, and move each object to its
 * place below the directory `objects`: two hex digits, '/', the other 62. Nothing can be put after. LS_LIMIT for a number
 * that means something else in a location. */
int ls_contents_publish(struct ls_contents *contents, int objects, uint32_t pack, struct ls_error *err);

struct ls_contents_counts ls_contents_counts(const struct ls_contents *contents);

/* What was new, in the order of storing, after ls_contents_publish. Valid until ls_contents_free. */
const struct ls_digest_record *ls_contents_records(const struct ls_contents *contents, uint32_t *count);
/* The pack's slots, and the bytes of contents in it. Valid until ls_contents_free. */
const struct ls_pack_slot *ls_contents_slots(const struct ls_contents *contents, uint32_t *count, uint64_t *bytes);

#endif
