/* One extended attribute as EROFS stores it: the number of a prefix, the rest of the name, the value. */
#ifndef LS_EROFS_XATTR_ENTRY_H
#define LS_EROFS_XATTR_ENTRY_H

#include "erofs_format.h"
#include "index/index.h"

struct erofs_xattr {
	const uint8_t *name; /* without its prefix, and without what escaping puts before it */
	const uint8_t *value;
	uint16_t value_length;
	uint8_t name_length;
	uint8_t prefix; /* enum erofs_xattr_prefix */
	uint8_t is_escaped;
};

/* Can Linux show an attribute of that name on EROFS at all? Images built on other systems have some (com.apple.*)
 * that it cannot: docker, too, leaves them out. */
int erofs_xattr_is_shown(const struct ls_xattr_cursor *cursor);

/* From what the index has for an inode, of a name that is shown; strings stay the index's. LS_LIMIT, naming the
 * record's path and the attribute, where a name or value is too long. */
int erofs_xattr_parse(const struct ls_index *index, uint32_t record, const struct ls_xattr_cursor *cursor,
                      struct erofs_xattr *xattr, struct ls_error *err);

/* The bytes of the entry, padding included: a multiple of 4. */
uint32_t erofs_xattr_bytes(const struct erofs_xattr *xattr);

/* Write them (the padding is zero already); returns where they end. */
uint8_t *erofs_xattr_put(const struct erofs_xattr *xattr, uint8_t *out);

/* The bit that is 0 in the filter of an inode that has the attribute. */
uint32_t erofs_xattr_filter_bit(const struct erofs_xattr *xattr);

#endif
