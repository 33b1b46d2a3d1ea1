/* The attributes of what the walk of an upper directory meets. Private to this folder. */
#ifndef LS_UPPER_ATTRIBUTES_H
#define LS_UPPER_ATTRIBUTES_H

#include <sys/stat.h>

#include "base/arena.h"
#include "base/whiteout.h"
#include "upper.h"
#include "upper_walk.h"
#include "xattrs.h"

/* What the attributes of something in the upper directory are, those of overlayfs apart. */
struct upper_attributes {
	struct stat status;
	struct ls_bytes target; /* of a symlink */
	const struct ls_xattr *xattrs;
	size_t xattr_count;
	int is_opaque;
	int is_metacopy;
	struct upper_redirect redirect;
};

/* Room for reading attributes. */
struct upper_reader {
	const struct upper_walk *walk;
	struct ls_arena *arena; /* of what attributes point to */
	char *names, *value;    /* LS_XATTRS_BYTES each */
};

/* The attributes of an open file or directory, which is at the walk's path; of an item that is neither. UPPER_CHANGED where
 * it is no longer what it was. */
int upper_read_attributes(const struct upper_reader *reader, int fd, struct upper_attributes *attributes,
                          struct ls_error *err);
int upper_read_special(const struct upper_reader *reader, const struct upper_item *item,
                       struct upper_attributes *attributes, struct ls_error *err);

/* The attributes of a record as an entry's, without path and content. */
int upper_describe_record(const struct upper_reader *reader, uint32_t number, struct ls_upper_entry *entry,
                          struct ls_error *err);

/* Whether the chain's record has the same attributes, and for what is neither a file nor a directory all else, too. */
int upper_is_record(const struct upper_reader *reader, const struct upper_attributes *attributes, uint32_t number,
                    int *is_record, struct ls_error *err);

/* Whether an open file has the content of the chain's record, which is a regular file. */
int upper_has_content(const struct upper_reader *reader, int fd, uint64_t size, uint32_t number, int *has_content,
                      struct ls_error *err);

#endif
