#include "erofs_xattr_entry.h"

#include <string.h>

#include "base/bytes.h"
#include "erofs_tree.h"
#include "hash/xxhash32.h"

#define XATTR_NAME_BYTES 255u /* XATTR_NAME_MAX of Linux: prefix included */

/* "trusted." and this is overlayfs's own. It goes once more in front of an image's own attributes of that kind,
 * and overlayfs takes it off again when it shows them (Documentation/filesystems/overlayfs.rst, "Nesting overlayfs
 * mounts"). */
#define OVERLAY "overlay."

struct prefix {
	const char *text;
	uint8_t number;
	uint8_t is_whole_name;
};

/* Linux has no handler for any other: it neither lists nor gets an entry of prefix 0, and "trusted." alone names
 * none. */
static const struct prefix prefixes[] = {
    {"user.", EROFS_XATTR_USER, 0},
    {"trusted.", EROFS_XATTR_TRUSTED, 0},
    {"security.", EROFS_XATTR_SECURITY, 0},
    {"system.posix_acl_access", EROFS_XATTR_ACL_ACCESS, 1},
    {"system.posix_acl_default", EROFS_XATTR_ACL_DEFAULT, 1},
};

static const struct prefix *find_prefix(const char *name, size_t length)
{
	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
		size_t bytes = strlen(prefixes[i].text);

		if (ls_begins_with(name, length, prefixes[i].text) && prefixes[i].is_whole_name == (length == bytes))
			return &prefixes[i];
	}
	return NULL;
}

int erofs_xattr_is_shown(const struct ls_xattr_cursor *cursor)
{
	return find_prefix(cursor->name, cursor->name_length) && !memchr(cursor->name, '\0', cursor->name_length);
}

int erofs_xattr_parse(const struct ls_index *index, uint32_t record, const struct ls_xattr_cursor *cursor,
                      struct erofs_xattr *xattr, struct ls_error *err)
{
	const struct prefix *prefix = find_prefix(cursor->name, cursor->name_length);
	size_t prefix_length, name_length, added;

	prefix_length = strlen(prefix->text);
	name_length = cursor->name_length - prefix_length;
	*xattr = (struct erofs_xattr){
	    .name = (const uint8_t *)cursor->name + prefix_length,
	    .value = cursor->value,
	    .prefix = prefix->number,
	};
	xattr->is_escaped = prefix->number == EROFS_XATTR_TRUSTED && ls_begins_with(xattr->name, name_length, OVERLAY);
	added = xattr->is_escaped ? strlen(OVERLAY) : 0;
	if (cursor->name_length + added > XATTR_NAME_BYTES)
		return erofs_refuse(
		    index, record, LS_LIMIT, err,
		    "the name of its extended attribute '%s' has %zu bytes, more than the %zu that can be shown",
		    LS_SHOWN(cursor->name, cursor->name_length), cursor->name_length, XATTR_NAME_BYTES - added);
	if (cursor->value_length > EROFS_XATTR_VALUE_BYTES)
		return erofs_refuse(
		    index, record, LS_LIMIT, err,
		    "the value of its extended attribute '%s' has %zu bytes, more than the %u that EROFS holds",
		    LS_SHOWN(cursor->name, cursor->name_length), cursor->value_length, EROFS_XATTR_VALUE_BYTES);
	xattr->name_length = (uint8_t)name_length;
	xattr->value_length = (uint16_t)cursor->value_length;
	return LS_OK;
}

/* The name as it is stored; returns its length. */
static uint8_t spell(const struct erofs_xattr *xattr, uint8_t name[XATTR_NAME_BYTES])
{
	size_t added = xattr->is_escaped ? strlen(OVERLAY) : 0;

	memcpy(name, OVERLAY, added);
	memcpy(name + added, xattr->name, xattr->name_length);
	return (uint8_t)(added + xattr->name_length);
}

uint32_t erofs_xattr_bytes(const struct erofs_xattr *xattr)
{
	size_t added = xattr->is_escaped ? strlen(OVERLAY) : 0;

	return (uint32_t)erofs_round_up(
	    sizeof(struct erofs_xattr_entry) + added + xattr->name_length + xattr->value_length, 4);
}

uint8_t *erofs_xattr_put(const struct erofs_xattr *xattr, uint8_t *out)
{
	uint8_t name[XATTR_NAME_BYTES];
	struct erofs_xattr_entry head = {
	    .name_length = spell(xattr, name), .prefix = xattr->prefix, .value_length = xattr->value_length};

	memcpy(out, &head, sizeof(head));
	memcpy(out + sizeof(head), name, head.name_length);
	memcpy(out + sizeof(head) + head.name_length, xattr->value, xattr->value_length);
	return out + erofs_xattr_bytes(xattr);
}

uint32_t erofs_xattr_filter_bit(const struct erofs_xattr *xattr)
{
	uint8_t name[XATTR_NAME_BYTES];
	uint8_t length = spell(xattr, name);

	return UINT32_C(1) << ls_xxhash32(name, length, EROFS_XATTR_FILTER_SEED + xattr->prefix) % 32;
}
