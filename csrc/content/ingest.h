/* The import of one layer: tar bytes in, contents stored, and out come the layer's index and its recipe.
 *
 * The recipe is what is needed, beside the contents, to write the very same tar again (docs/format/recipe.md):
 * a sequence of frames, each a kind byte and its body, in the tar's order, little-endian.
 *   LS_RECIPE_RAW      u32 length, then so many bytes of the tar; one that is followed by another of its kind
 *                      holds LS_RECIPE_RAW_BYTES
 *   LS_RECIPE_CONTENT  the whole of the next content, in number
 *   LS_RECIPE_SPARSE   u32 count, then (u64 offset, u64 length) for each: these ranges of the next content
 * Index, recipe, and what is stored and in which order depend on the tar alone, not on how it is cut into spans.
 * Not safe for use by two threads at once. After an error only ls_ingest_free is allowed. */
#ifndef LS_INGEST_H
#define LS_INGEST_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/status.h"
#include "contents.h"
#include "tar/tar.h"

enum ls_recipe_kind { LS_RECIPE_RAW = 0, LS_RECIPE_CONTENT = 1, LS_RECIPE_SPARSE = 2 };

#define LS_RECIPE_RAW_BYTES 65536u

/* The holes of a layer's sparse files, in all, unless ls_ingest_limit says otherwise: a content's digest is that of its
 * logical bytes, so a hole of one header costs as long as the bytes would to hash (64 GiB: 20 s of one core, measured;
 * the place of a chunk goes into its hash, so that equal ones cannot be hashed once). LS_LIMIT beyond. */
#define LS_INGEST_HOLE_BYTES ((uint64_t)64 << 30)

struct ls_ingest;

/* `contents` is borrowed and may serve several layers one after another. */
int ls_ingest_new(struct ls_ingest **ingest, struct ls_contents *contents, const struct ls_tar_limits *limits,
                  struct ls_error *err);
void ls_ingest_free(struct ls_ingest *ingest);

/* From the next span on. Whatever brings more is refused, naming the entry, LS_LIMIT. */
struct ls_ingest_limits {
	uint64_t hole_bytes;        /* of the layer's holes in all, as the headers of its files have them */
	uint64_t passed_hole_bytes; /* of those until now, as their files arrive; without a call any number */
	uint64_t index_bytes;       /* of the layer's entries (ls_layer_builder_bytes); without a call any number */
};
void ls_ingest_limit(struct ls_ingest *ingest, const struct ls_ingest_limits *limits);

/* Take in the next bytes of the tar, of any length; a few MiB at a time is fastest. */
int ls_ingest_feed(struct ls_ingest *ingest, const uint8_t *bytes, size_t length, struct ls_error *err);

/* Say that the tar has ended. Nothing can be fed after. */
int ls_ingest_finish(struct ls_ingest *ingest, struct ls_error *err);

/* Move the recipe's bytes that are complete since the last call to `out`, replacing what it holds: after finish, all
 * that are left. */
int ls_ingest_take_recipe(struct ls_ingest *ingest, struct ls_buffer *out, struct ls_error *err);

/* The layer's index, after finish; once. */
int ls_ingest_index(struct ls_ingest *ingest, const uint8_t hash_key[16], struct ls_buffer *out, struct ls_error *err);

/* The sum of the logical sizes of the regular files so far. */
uint64_t ls_ingest_files_bytes(const struct ls_ingest *ingest);

#endif
