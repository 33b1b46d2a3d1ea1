#include "erofs_xattr.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "erofs_intern.h"
#include "erofs_tree.h"
#include "xxhash32.h"

#define XATTR_NAME_BYTES 255u /* XATTR_NAME_MAX of Linux: prefix included */
#define METACOPY "overlay.metacopy"
#define REDIRECT "overlay.redirect"
#define REDIRECT_BYTES 80 /* "/" "ab" "/" and 62 digits, or "/p" and two decimals, and the zero byte */

/* Shared numbers are counted in a byte; metacopy and redirect may need two, so a set has the rest. */
#define SET_SHARED_MAX 253u
/* And they may need this much room of an inode when they are not shared. */
#define CONTENT_BODY_BYTES (2 * sizeof(struct erofs_xattr_entry) + sizeof(METACOPY) + sizeof(REDIRECT) + REDIRECT_BYTES + 8)
#define SET_BODY_BYTES (EROFS_XATTR_BODY_BYTES - CONTENT_BODY_BYTES)

#define SHARED_NUMBER_BYTES 4u
#define NOT_SHARED UINT32_MAX

/* What `trusted.overlay.` becomes in front of an image's own attributes; overlayfs takes it off again ("Nesting
 * overlayfs mounts" in Documentation/filesystems/overlayfs.rst). */
#define OVERLAY "overlay."

struct entry {
	const uint8_t *name; /* of the index, without the prefix */
	const uint8_t *value;
	uint16_t value_length;
	uint8_t name_length;
	uint8_t prefix;
	uint8_t is_escaped; /* OVERLAY goes before the name */
	uint8_t filter_bit;
	uint32_t uses;   /* inodes that have it */
	uint32_t shared; /* number in the shared area, or NOT_SHARED */
};

struct member {
	uint32_t entry;
	uint32_t bytes;
	uint8_t is_shared;
};

struct set {
	uint32_t record; /* the first inode that has it, for messages */
	uint32_t uses;
	uint32_t first; /* of its members */
	uint32_t count;
	uint32_t shared_count;
	uint32_t body_bytes; /* after the header: shared numbers and own entries */
	uint32_t filter;
};

/* A redirect belongs to a content; its value is spelled out when it is written. */
struct redirect {
	uint32_t uses;
	uint32_t shared;
};

struct erofs_xattrs {
	const struct ls_index *index;
	const struct ls_location *locations;
	struct erofs_intern set_numbers;
	struct erofs_intern entry_numbers;
	struct set *sets;
	uint32_t set_capacity;
	struct entry *entries;
	uint32_t entry_capacity;
	struct member *members;
	uint32_t member_count;
	uint32_t member_capacity;
	struct redirect *redirects;
	uint32_t metacopy_uses;
	uint32_t metacopy_shared;
	uint32_t content_filter; /* the bits that metacopy and redirect clear */
	uint64_t shared_bytes;
	uint32_t shared_base;
};

static uint32_t entry_bytes(size_t name_length, size_t value_length)
{
	return (uint32_t)erofs_round_up(sizeof(struct erofs_xattr_entry) + name_length + value_length, 4);
}

static uint8_t filter_bit(uint8_t prefix, const void *name, size_t length)
{
	return ls_xxhash32(name, length, EROFS_XATTR_FILTER_SEED + prefix) % 32;
}

static uint8_t written_name_length(const struct entry *entry)
{
	return (uint8_t)(entry->name_length + (entry->is_escaped ? strlen(OVERLAY) : 0));
}

static void spell_name(const struct entry *entry, char name[XATTR_NAME_BYTES])
{
	size_t before = entry->is_escaped ? strlen(OVERLAY) : 0;

	memcpy(name, OVERLAY, before);
	memcpy(name + before, entry->name, entry->name_length);
}

static uint32_t stored_bytes(const struct entry *entry)
{
	return entry_bytes(written_name_length(entry), entry->value_length);
}

static int spell_redirect(const struct erofs_xattrs *xattrs, uint32_t content, char out[REDIRECT_BYTES])
{
	static const char hex[] = "0123456789abcdef";
	const struct ls_location *location = &xattrs->locations[content];
	const uint8_t *digest = xattrs->index->contents[content].digest;
	int length = 0;

	if (location->pack != LS_LOCATION_OBJECT)
		return snprintf(out, REDIRECT_BYTES, "/p%u/%u", location->pack, location->slot);
	for (int i = 0; i < 32; i++) {
		if (i < 2)
			out[length++] = '/';
		out[length++] = hex[digest[i] >> 4];
		out[length++] = hex[digest[i] & 15];
	}
	return length;
}

int erofs_xattrs_new(struct erofs_xattrs **result, const struct ls_index *index, const struct ls_location *locations,
                     struct ls_error *err)
{
	struct erofs_xattrs *xattrs = calloc(1, sizeof(*xattrs));
	uint32_t contents = index->header->content_count;

	*result = xattrs;
	if (xattrs)
		xattrs->redirects = calloc((size_t)contents + 1, sizeof(*xattrs->redirects));
	if (!xattrs || !xattrs->redirects)
		return ls_fail(err, LS_NO_MEMORY, "writing an EROFS image: out of memory for %u redirects", contents);
	xattrs->index = index;
	xattrs->locations = locations;
	xattrs->set_numbers.key = index->header->hash_key;
	xattrs->entry_numbers.key = index->header->hash_key;
	xattrs->content_filter = UINT32_C(1) << filter_bit(EROFS_XATTR_TRUSTED, METACOPY, strlen(METACOPY)) |
	                         UINT32_C(1) << filter_bit(EROFS_XATTR_TRUSTED, REDIRECT, strlen(REDIRECT));
	return LS_OK;
}

void erofs_xattrs_free(struct erofs_xattrs *xattrs)
{
	if (!xattrs)
		return;
	erofs_intern_free(&xattrs->set_numbers);
	erofs_intern_free(&xattrs->entry_numbers);
	free(xattrs->sets);
	free(xattrs->entries);
	free(xattrs->members);
	free(xattrs->redirects);
	free(xattrs);
}

/* Make room for item number `count` of an array. */
static int reserve(void **array, uint32_t *capacity, uint32_t count, size_t item_bytes, struct ls_error *err)
{
	uint64_t more = *capacity ? (uint64_t)*capacity * 2 : 64;
	void *grown;

	if (count < *capacity)
		return LS_OK;
	if (more > UINT32_MAX)
		return ls_fail(err, LS_LIMIT, "writing an EROFS image: more than 2^31 extended attributes");
	grown = realloc(*array, more * item_bytes);
	if (!grown)
		return ls_fail(err, LS_NO_MEMORY, "writing an EROFS image: out of memory for extended attributes");
	*array = grown;
	*capacity = (uint32_t)more;
	return LS_OK;
}

struct prefix {
	const char *text;
	uint8_t number;
	uint8_t is_whole_name;
};

/* The name index 0 of erofs_fs.h is not here: Linux has no handler for it, neither lists nor gets it. */
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

		if (length < bytes || memcmp(name, prefixes[i].text, bytes))
			continue;
		if (prefixes[i].is_whole_name ? length == bytes : length > bytes)
			return &prefixes[i];
	}
	return NULL;
}

static int parse_entry(const struct erofs_xattrs *xattrs, uint32_t record, const struct ls_xattr_cursor *cursor,
                       struct entry *entry, struct ls_error *err)
{
	const struct prefix *prefix = find_prefix(cursor->name, cursor->name_length);
	size_t prefix_length, name_length;
	char printable[160];

	ls_printable(printable, sizeof(printable), cursor->name, cursor->name_length);
	if (!prefix || memchr(cursor->name, '\0', cursor->name_length))
		return erofs_refuse(xattrs->index, record, LS_UNSUPPORTED, err,
		                    "EROFS has no place for its extended attribute '%s' (only for user.*, trusted.*, "
		                    "security.* and POSIX ACLs): rebuild the layer without it",
		                    printable);
	prefix_length = strlen(prefix->text);
	*entry = (struct entry){
	    .name = (const uint8_t *)cursor->name + prefix_length,
	    .value = cursor->value,
	    .prefix = prefix->number,
	    .shared = NOT_SHARED,
	};
	name_length = cursor->name_length - prefix_length;
	entry->is_escaped = prefix->number == EROFS_XATTR_TRUSTED && name_length >= strlen(OVERLAY) &&
	                    !memcmp(entry->name, OVERLAY, strlen(OVERLAY));
	if (cursor->name_length + (entry->is_escaped ? strlen(OVERLAY) : 0) > XATTR_NAME_BYTES)
		return erofs_refuse(xattrs->index, record, LS_LIMIT, err,
		                    "the name of its extended attribute '%s' has %zu bytes, more than the %u that Linux allows%s",
		                    printable, cursor->name_length, XATTR_NAME_BYTES,
		                    entry->is_escaped ? " (less 8 under trusted.overlay)" : "");
	if (cursor->value_length > EROFS_XATTR_VALUE_BYTES)
		return erofs_refuse(xattrs->index, record, LS_LIMIT, err,
		                    "the value of its extended attribute '%s' has %zu bytes, more than the %u that EROFS holds",
		                    printable, cursor->value_length, EROFS_XATTR_VALUE_BYTES);
	entry->name_length = (uint8_t)name_length;
	entry->value_length = (uint16_t)cursor->value_length;
	return LS_OK;
}

/* An entry is the bytes that the index has for it, lengths included: equal bytes, equal entry. */
static struct erofs_string encoded_entry(const struct ls_xattr_cursor *cursor)
{
	size_t lengths = sizeof(uint16_t) + sizeof(uint32_t);

	return (struct erofs_string){(const uint8_t *)cursor->name - lengths,
	                             lengths + cursor->name_length + cursor->value_length};
}

static int add_member(struct erofs_xattrs *xattrs, struct set *set, const struct ls_xattr_cursor *cursor,
                      struct ls_error *err)
{
	uint32_t known = xattrs->entry_numbers.count;
	char name[XATTR_NAME_BYTES];
	struct entry *entry;
	uint32_t number;
	int status;

	status = erofs_intern(&xattrs->entry_numbers, encoded_entry(cursor), &number, err);
	if (!status)
		status = reserve((void **)&xattrs->entries, &xattrs->entry_capacity, number, sizeof(*entry), err);
	if (!status)
		status = reserve((void **)&xattrs->members, &xattrs->member_capacity, xattrs->member_count,
		                 sizeof(struct member), err);
	if (status)
		return status;
	entry = &xattrs->entries[number];
	if (number == known) {
		status = parse_entry(xattrs, set->record, cursor, entry, err);
		if (status)
			return status;
		spell_name(entry, name);
		entry->filter_bit = filter_bit(entry->prefix, name, written_name_length(entry));
	}
	set->filter &= ~(UINT32_C(1) << entry->filter_bit);
	set->count++;
	xattrs->members[xattrs->member_count++] = (struct member){.entry = number, .bytes = stored_bytes(entry)};
	return LS_OK;
}

static int add_set(struct erofs_xattrs *xattrs, uint32_t record, struct set *set, struct ls_error *err)
{
	struct ls_xattr_cursor cursor = {0};
	int status;

	*set = (struct set){.record = record, .first = xattrs->member_count, .filter = UINT32_MAX};
	while (!(status = ls_index_xattr_next(xattrs->index, xattrs->index->records[record].xattrs, &cursor, err)) &&
	       cursor.name) {
		status = add_member(xattrs, set, &cursor, err);
		if (status)
			return status;
	}
	return status;
}

int erofs_xattrs_collect(struct erofs_xattrs *xattrs, uint32_t record, uint32_t *result, struct ls_error *err)
{
	const struct ls_record *inode = &xattrs->index->records[record];
	struct erofs_string block = {(const uint8_t *)&inode->xattrs, sizeof(inode->xattrs)};
	uint32_t known = xattrs->set_numbers.count;
	uint32_t number;
	int status;

	*result = LS_NONE;
	if (S_ISREG(inode->mode) && inode->data != LS_NONE) {
		xattrs->metacopy_uses++;
		xattrs->redirects[inode->data].uses++;
	}
	if (!inode->xattrs)
		return LS_OK;
	status = erofs_intern(&xattrs->set_numbers, block, &number, err);
	if (!status)
		status = reserve((void **)&xattrs->sets, &xattrs->set_capacity, number, sizeof(struct set), err);
	if (!status && number == known)
		status = add_set(xattrs, record, &xattrs->sets[number], err);
	if (status)
		return status;
	xattrs->sets[number].uses++;
	if (xattrs->sets[number].count)
		*result = number;
	return LS_OK;
}

static int is_worth_sharing(uint32_t uses, uint32_t bytes)
{
	return (uint64_t)uses * bytes > (uint64_t)uses * SHARED_NUMBER_BYTES + bytes;
}

static void share_member(struct set *set, struct member *member)
{
	member->is_shared = 1;
	set->shared_count++;
	set->body_bytes -= member->bytes - SHARED_NUMBER_BYTES;
}

static int larger_first(const void *left, const void *right)
{
	const struct member *a = left, *b = right;

	if (a->bytes != b->bytes)
		return a->bytes > b->bytes ? -1 : 1;
	return a->entry < b->entry ? -1 : a->entry > b->entry;
}

/* An inode has room for 256 KiB of its own; what is beyond goes to the shared area though no other inode has it. */
static int share_what_does_not_fit(const struct erofs_xattrs *xattrs, struct set *set, struct ls_error *err)
{
	struct member *members = xattrs->members + set->first;

	if (set->body_bytes <= SET_BODY_BYTES)
		return LS_OK;
	qsort(members, set->count, sizeof(*members), larger_first);
	for (uint32_t i = 0; i < set->count && set->shared_count < SET_SHARED_MAX; i++) {
		if (set->body_bytes <= SET_BODY_BYTES)
			break;
		if (!members[i].is_shared)
			share_member(set, &members[i]);
	}
	if (set->body_bytes > SET_BODY_BYTES)
		return erofs_refuse(xattrs->index, set->record, LS_LIMIT, err,
		                    "its %u extended attributes exceed what an EROFS inode holds (256 KiB and %u shared ones)",
		                    set->count, SET_SHARED_MAX);
	return LS_OK;
}

static int share_set(const struct erofs_xattrs *xattrs, struct set *set, struct ls_error *err)
{
	struct member *members = xattrs->members + set->first;
	uint64_t body_bytes = 0;

	for (uint32_t i = 0; i < set->count; i++)
		body_bytes += members[i].bytes;
	if (body_bytes > UINT32_MAX)
		return erofs_refuse(xattrs->index, set->record, LS_LIMIT, err, "its extended attributes exceed 4 GiB");
	set->body_bytes = (uint32_t)body_bytes;
	for (uint32_t i = 0; i < set->count && set->shared_count < SET_SHARED_MAX; i++)
		if (is_worth_sharing(xattrs->entries[members[i].entry].uses, members[i].bytes))
			share_member(set, &members[i]);
	return share_what_does_not_fit(xattrs, set, err);
}

/* Numbers are in units of 4 bytes and 32 bits wide, so 16 GiB of shared entries can be reached. */
static uint32_t next_shared_number(struct erofs_xattrs *xattrs, uint32_t bytes)
{
	uint64_t number = xattrs->shared_bytes / 4;

	xattrs->shared_bytes += bytes;
	return (uint32_t)number;
}

static void place_redirects(struct erofs_xattrs *xattrs)
{
	uint32_t metacopy = entry_bytes(strlen(METACOPY), 0);
	char value[REDIRECT_BYTES];

	xattrs->metacopy_shared = NOT_SHARED;
	if (is_worth_sharing(xattrs->metacopy_uses, metacopy))
		xattrs->metacopy_shared = next_shared_number(xattrs, metacopy);
	for (uint32_t i = 0; i < xattrs->index->header->content_count; i++) {
		struct redirect *redirect = &xattrs->redirects[i];
		uint32_t bytes;

		redirect->shared = NOT_SHARED;
		if (redirect->uses < 2)
			continue;
		bytes = entry_bytes(strlen(REDIRECT), (size_t)spell_redirect(xattrs, i, value));
		if (is_worth_sharing(redirect->uses, bytes))
			redirect->shared = next_shared_number(xattrs, bytes);
	}
}

int erofs_xattrs_share(struct erofs_xattrs *xattrs, struct ls_error *err)
{
	for (uint32_t i = 0; i < xattrs->set_numbers.count; i++)
		for (uint32_t j = 0; j < xattrs->sets[i].count; j++)
			xattrs->entries[xattrs->members[xattrs->sets[i].first + j].entry].uses += xattrs->sets[i].uses;
	for (uint32_t i = 0; i < xattrs->set_numbers.count; i++) {
		int status = share_set(xattrs, &xattrs->sets[i], err);

		if (status)
			return status;
	}
	place_redirects(xattrs);
	for (uint32_t i = 0; i < xattrs->member_count; i++) {
		struct entry *entry = &xattrs->entries[xattrs->members[i].entry];

		if (xattrs->members[i].is_shared && entry->shared == NOT_SHARED)
			entry->shared = next_shared_number(xattrs, xattrs->members[i].bytes);
	}
	if (xattrs->shared_bytes / 4 >= NOT_SHARED - LS_EROFS_BLOCK_BYTES)
		return ls_fail(err, LS_LIMIT, "writing an EROFS image: its shared extended attributes exceed 16 GiB");
	return LS_OK;
}

uint64_t erofs_xattrs_shared_bytes(const struct erofs_xattrs *xattrs)
{
	return xattrs->shared_bytes;
}

void erofs_xattrs_place_shared(struct erofs_xattrs *xattrs, uint32_t offset)
{
	xattrs->shared_base = offset / 4;
}

uint32_t erofs_xattrs_size(const struct erofs_xattrs *xattrs, uint32_t set, uint32_t content)
{
	uint32_t body = set == LS_NONE ? 0 : xattrs->sets[set].body_bytes;
	char value[REDIRECT_BYTES];

	if (content != LS_NONE) {
		body += xattrs->metacopy_shared == NOT_SHARED ? entry_bytes(strlen(METACOPY), 0) : SHARED_NUMBER_BYTES;
		body += xattrs->redirects[content].shared == NOT_SHARED
		            ? entry_bytes(strlen(REDIRECT), (size_t)spell_redirect(xattrs, content, value))
		            : SHARED_NUMBER_BYTES;
	}
	return body ? body + (uint32_t)sizeof(struct erofs_xattr_header) : 0;
}

static uint8_t *put_entry(uint8_t *out, uint8_t prefix, const void *name, uint8_t name_length, const void *value,
                          uint16_t value_length)
{
	struct erofs_xattr_entry head = {name_length, prefix, value_length};

	memcpy(out, &head, sizeof(head));
	memcpy(out + sizeof(head), name, name_length);
	memcpy(out + sizeof(head) + name_length, value, value_length);
	return out + entry_bytes(name_length, value_length);
}

static uint8_t *put_own_entry(const struct entry *entry, uint8_t *out)
{
	char name[XATTR_NAME_BYTES];

	spell_name(entry, name);
	return put_entry(out, entry->prefix, name, written_name_length(entry), entry->value, entry->value_length);
}

static uint8_t *put_metacopy(uint8_t *out)
{
	return put_entry(out, EROFS_XATTR_TRUSTED, METACOPY, strlen(METACOPY), "", 0);
}

static uint8_t *put_redirect(const struct erofs_xattrs *xattrs, uint32_t content, uint8_t *out)
{
	char value[REDIRECT_BYTES];
	int length = spell_redirect(xattrs, content, value);

	return put_entry(out, EROFS_XATTR_TRUSTED, REDIRECT, strlen(REDIRECT), value, (uint16_t)length);
}

static uint8_t *put_shared_number(const struct erofs_xattrs *xattrs, uint32_t shared, struct erofs_xattr_header *header,
                                  uint8_t *out)
{
	uint32_t number = xattrs->shared_base + shared;

	header->shared_count++;
	memcpy(out, &number, sizeof(number));
	return out + sizeof(number);
}

void erofs_xattrs_write(const struct erofs_xattrs *xattrs, uint32_t set_number, uint32_t content, uint8_t *out)
{
	static const struct set empty = {.filter = UINT32_MAX};
	const struct set *set = set_number == LS_NONE ? &empty : &xattrs->sets[set_number];
	const struct member *members = xattrs->members + set->first;
	struct erofs_xattr_header header = {.filter = set->filter};
	uint8_t *at = out + sizeof(header);
	int metacopy_is_shared = xattrs->metacopy_shared != NOT_SHARED;
	int redirect_is_shared = content != LS_NONE && xattrs->redirects[content].shared != NOT_SHARED;

	if (content != LS_NONE)
		header.filter &= ~xattrs->content_filter;
	if (content != LS_NONE && metacopy_is_shared)
		at = put_shared_number(xattrs, xattrs->metacopy_shared, &header, at);
	if (redirect_is_shared)
		at = put_shared_number(xattrs, xattrs->redirects[content].shared, &header, at);
	for (uint32_t i = 0; i < set->count; i++)
		if (members[i].is_shared)
			at = put_shared_number(xattrs, xattrs->entries[members[i].entry].shared, &header, at);
	if (content != LS_NONE && !metacopy_is_shared)
		at = put_metacopy(at);
	if (content != LS_NONE && !redirect_is_shared)
		at = put_redirect(xattrs, content, at);
	for (uint32_t i = 0; i < set->count; i++)
		if (!members[i].is_shared)
			at = put_own_entry(&xattrs->entries[members[i].entry], at);
	memcpy(out, &header, sizeof(header));
}

void erofs_xattrs_write_shared(const struct erofs_xattrs *xattrs, uint8_t *out)
{
	if (xattrs->metacopy_shared != NOT_SHARED)
		put_metacopy(out + (uint64_t)xattrs->metacopy_shared * 4);
	for (uint32_t i = 0; i < xattrs->index->header->content_count; i++)
		if (xattrs->redirects[i].shared != NOT_SHARED)
			put_redirect(xattrs, i, out + (uint64_t)xattrs->redirects[i].shared * 4);
	for (uint32_t i = 0; i < xattrs->entry_numbers.count; i++)
		if (xattrs->entries[i].shared != NOT_SHARED)
			put_own_entry(&xattrs->entries[i], out + (uint64_t)xattrs->entries[i].shared * 4);
}
