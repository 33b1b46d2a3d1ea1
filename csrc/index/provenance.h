/* The life of every version of every path of a stack: which layer brought it, and which later one ended it, how.
 *
 * A layer brings a version of a path with every record that is no directory and no whiteout (a lower link too), and
 * with a directory where the layers below show none, or one with other attributes: mode, owner, time or xattrs. A
 * directory that it only implies changes none that shows through. A version ends with the first later layer that
 * brings another one of its path, or that hides it: by a whiteout of it, or by something above it that is a whiteout,
 * no directory, or an opaque one. What a layer has itself below such a thing is not hidden by that. A whiteout of what is
 * not there ends nothing.
 *
 * layers[0] is the bottom; all are layer indexes, not a chain's (LS_INVALID). As for the merge they need not have been
 * verified. Nothing is kept between calls; safe for many threads. */
#ifndef LS_PROVENANCE_H
#define LS_PROVENANCE_H

#include "base/buffer.h"
#include "index.h"

enum ls_version_end {
	LS_VERSION_VISIBLE,        /* it has not ended */
	LS_VERSION_REPLACED,       /* by another version of the path */
	LS_VERSION_WHITEOUT,       /* by a whiteout of the path */
	LS_VERSION_ABOVE_WHITEOUT, /* by a whiteout of a directory above it */
	LS_VERSION_ABOVE_REPLACED, /* by what is no directory and stands in the place of one above it */
	LS_VERSION_ABOVE_OPAQUE,   /* by an opaque directory above it */
};

struct ls_version {
	uint32_t layer; /* that brought it, from 0 at the bottom */
	uint32_t record;
	uint32_t end_layer;  /* LS_NONE while it is visible */
	uint32_t end_record; /* what ended it: the record of the path, or of what is above it (the nearest) */
	uint32_t end;        /* enum ls_version_end */
	uint32_t is_change;  /* the version before it ended by this one; else the path was not there */
};

/* What became of a layer. Paths are counted each: a hidden directory is as many as were visible in it. */
struct ls_layer_figures {
	uint64_t added;        /* versions of paths that were not there */
	uint64_t changed;      /* versions that replaced others */
	uint64_t hidden;       /* versions of lower layers that it ended without replacing them */
	uint64_t added_bytes;  /* of its regular files, those of an inode once */
	uint64_t wasted_bytes; /* of these, the bytes of inodes that no visible path leads to any more */
};

/* Append every version to `versions` (struct ls_version), those of a path together, the lowest first; and set the
 * figures of each layer. One walk over the union of all directories, the hidden ones too: time is in proportion to the
 * bytes of the records and their paths, times the logarithm of the number of layers. LS_INVALID, naming it, for a
 * visible lower link to what the layers below do not show. */
int ls_provenance(const struct ls_index *const *layers, size_t layer_count, struct ls_buffer *versions,
                  struct ls_layer_figures *figures, struct ls_error *err);

/* Append the versions of one path (spelled as for ls_index_lookup), the lowest first: a lookup of it and of every path
 * above it in each layer. */
int ls_provenance_path(const struct ls_index *const *layers, size_t layer_count, const char *path, size_t length,
                       struct ls_buffer *versions, struct ls_error *err);

/* What a version shows: from its layer and record to those that a lower link stands for (ls_union_follow); of anything
 * else they stay what they are. LS_INVALID as ls_provenance, and for a record that is not there. */
int ls_provenance_follow(const struct ls_index *const *layers, size_t layer_count, uint32_t *layer, uint32_t *record,
                         struct ls_error *err);

#endif
