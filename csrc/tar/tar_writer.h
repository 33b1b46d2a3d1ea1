/* Writes the tar of a layer: POSIX.1-2017 pax, and what the OCI image specification ("Image Layer Filesystem Changeset",
 * layer.md) makes of it. Equal calls give equal bytes.
 *
 * Each entry is a ustar header, with an extended header before it only for what does not fit there: a path or target that
 * is too long or not ASCII, a time with nanoseconds or outside 0 to 8^11 - 1 seconds, owners over 8^7 - 1, sizes of 8 GiB
 * and more, extended attributes (SCHILY.xattr.NAME, values as they are). Names are bytes; where one in an extended header
 * is not UTF-8 the header says hdrcharset=BINARY before it, as POSIX has it; Go's archive/tar (docker, containerd) and
 * GNU tar take the bytes either way. Owners have no names. Directories end in '/', the root is "./".
 *
 *     struct ls_tar_writer writer = {0}; struct ls_tar_entry entry = {.type = LS_TAR_REGULAR, .path = ...};
 *     ls_tar_write_entry(&writer, &entry, &err);
 *     ls_tar_write_data(&writer, bytes, length, &err);   any number of times, entry.size bytes in all
 *     ls_tar_write_data_end(&writer, &err);
 *     ls_tar_write_end(&writer, &err);
 *     ... writer.out ...
 *     ls_buffer_free(&writer.out);
 *
 * What a reader would take for something else is refused: a path that is not clean, or one with a component that begins
 * with ".wh.", which in a layer is a whiteout (LS_INVALID); more than tar.h's default limits (LS_LIMIT). After an error
 * what was written of the entry is in `out`: the archive is of no use. Not safe for use by two threads at once. */
#ifndef LS_TAR_WRITER_H
#define LS_TAR_WRITER_H

#include "base/buffer.h"
#include "tar.h"

#define LS_TAR_WRITER_PATH_BYTES 4096

struct ls_tar_writer {
	struct ls_buffer out;  /* what was written so far; the caller may take it away at any time */
	uint64_t content_left; /* bytes still to come of the last entry's content */
	uint32_t padding;      /* bytes that fill its last block */
	size_t path_length;    /* of the last entry, for messages */
	char path[LS_TAR_WRITER_PATH_BYTES];
};

/* Begin an entry. Of `entry` everything counts but the fields of sparse files, `stored_size` and `position`; the path has no
 * '/' at its ends and is empty for the root; xattrs are sorted by name; the size is that of a regular file, 0 otherwise.
 * A hard link repeats the attributes of what it links to, since some readers set them again. */
int ls_tar_write_entry(struct ls_tar_writer *writer, const struct ls_tar_entry *entry, struct ls_error *err);

/* Hide what lower layers have in a directory, whose entry was the last one; hide what they have at a path. */
int ls_tar_write_opaque(struct ls_tar_writer *writer, struct ls_bytes directory, struct ls_error *err);
int ls_tar_write_whiteout(struct ls_tar_writer *writer, struct ls_bytes path, struct ls_error *err);

/* The next bytes of the last entry's content; then its padding. LS_CORRUPT for more or fewer bytes than its size: whatever
 * gave them is not what its size was taken from. */
int ls_tar_write_data(struct ls_tar_writer *writer, const void *bytes, size_t length, struct ls_error *err);
int ls_tar_write_data_end(struct ls_tar_writer *writer, struct ls_error *err);

/* The end of the archive: two zero blocks. */
int ls_tar_write_end(struct ls_tar_writer *writer, struct ls_error *err);

#endif
