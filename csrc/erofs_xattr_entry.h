/* One extended attribute as EROFS stores it: the number of a prefix, the rest of the name, the value. */
#ifndef LS_EROFS_XATTR_ENTRY_H
#define LS_EROFS_XATTR_ENTRY_H

#include "erofs_format.h"
#include "index.h"

struct erofs_xattr {
	const uint8_t *name; /* without its prefix, and without what escaping puts before it */
	const uint8_t *value;
	uint16_t value_length;
	uint8_t name_length;
	uint8_t prefix; /* enum erofs_xattr_prefix */
	uint8_t is_escaped;
};

/* From what the index has for an inode; strings stay the index's. LS_UNSUPPORTED where EROFS has no place for it, LS_LIMIT where
 * a name or value is too long; both name the record's path and the attribute. */
int erofs_xattr_parse(const struct ls_index *index, uint32_t record, const struct ls_xattr_cursor *cursor,
                      struct erofs_xattr *xattr, struct ls_error *err);

/* The bytes of the entry, padding included: a multiple of 4. */
uint32_t erofs_xattr_bytes(const struct erofs_xattr *xattr);

/* Write them (the padding is zero already); returns where they end. */
uint8_t *erofs_xattr_put(const struct erofs_xattr *xattr, uint8_t *out);

/* The bit that is 0 in the filter of an inode that has the attribute. */
uint32_t erofs_xattr_filter_bit(const struct erofs_xattr *xattr);

#endif
