#include "erofs_xattr.h"

#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/table.h"
#include "erofs_decimal.h"
#include "erofs_tree.h"
#include "erofs_xattr_entry.h"
#include "hash/siphash.h"

#define REDIRECT_BYTES 66 /* "/ab/" and 62 digits; "/p", "/" and two decimals are shorter */

/* Shared numbers are counted in a byte; metacopy and redirect may need two, so a set has the rest. */
#define SET_SHARED_MAX 253u
/* And where they are not shared, they need less than this of an inode's room. */
#define CONTENT_BODY_BYTES 256u
#define SET_BODY_BYTES (EROFS_XATTR_BODY_BYTES - CONTENT_BODY_BYTES)

#define SHARED_NUMBER_BYTES 4u
#define NOT_SHARED UINT32_MAX

static const char METACOPY_NAME[] = "overlay.metacopy";
static const char REDIRECT_NAME[] = "overlay.redirect";

/* An attribute that some inode has. */
struct entry {
	struct ls_bytes encoded; /* as the index has it, lengths included: equal bytes, equal entry */
	struct erofs_xattr xattr;
	uint32_t filter_bit;
	uint32_t uses;   /* inodes that have it */
	uint32_t shared; /* number in the shared area, or NOT_SHARED */
};

struct member {
	uint32_t entry;
	uint32_t bytes;
	uint8_t is_shared;
};

struct set {
	uint32_t block;  /* of the index */
	uint32_t record; /* the first inode that has it, for messages */
	uint32_t uses;
	uint32_t first; /* of its members */
	uint32_t count;
	uint32_t shared_count;
	uint32_t body_bytes; /* after the header: shared numbers and own entries */
	uint32_t filter;
};

/* Belongs to a content; its value is spelled out when it is needed. */
struct redirect {
	uint32_t uses;
	uint32_t shared;
};

struct erofs_xattrs {
	const struct ls_index *index;
	const struct ls_location *locations;
	struct ls_table set_numbers; /* by the block */
	struct set *sets;
	size_t set_capacity;
	struct ls_table entry_numbers; /* by the encoded bytes */
	struct entry *entries;
	size_t entry_capacity;
	struct member *members;
	uint32_t member_count;
	size_t member_capacity;
	struct redirect *redirects;
	struct entry metacopy;
	uint32_t content_filter; /* the bits that metacopy and redirect clear */
	uint64_t shared_bytes;
	uint32_t shared_base;
};

static struct erofs_xattr overlay_xattr(const char *name, const char *value, int value_length)
{
	return (struct erofs_xattr){
	    .name = (const uint8_t *)name,
	    .name_length = (uint8_t)strlen(name),
	    .value = (const uint8_t *)value,
	    .value_length = (uint16_t)value_length,
	    .prefix = EROFS_XATTR_TRUSTED,
	};
}

static int spell_object(const uint8_t digest[32], char *out)
{
	char *at = out;

	*at++ = '/';
	at = ls_hex(at, digest, 1);
	*at++ = '/';
	return (int)(ls_hex(at, digest + 1, 31) - out);
}

static int spell_slot(const struct ls_location *location, char *out)
{
	int length = 0;

	out[length++] = '/';
	out[length++] = 'p';
	length += erofs_decimal(out + length, location->pack);
	out[length++] = '/';
	return length + erofs_decimal(out + length, location->slot);
}

/* The redirect of a content, its value spelled into `value`. */
static struct erofs_xattr redirect_xattr(const struct erofs_xattrs *xattrs, uint32_t content,
                                         char value[REDIRECT_BYTES])
{
	const struct ls_location *location = &xattrs->locations[content];
	int length;

	if (location->pack == LS_LOCATION_OBJECT)
		length = spell_object(xattrs->index->contents[content].digest, value);
	else
		length = spell_slot(location, value);
	return overlay_xattr(REDIRECT_NAME, value, length);
}

int erofs_xattrs_new(struct erofs_xattrs **result, const struct ls_index *index, const struct ls_location *locations,
                     struct ls_error *err)
{
	struct erofs_xattrs *xattrs = calloc(1, sizeof(*xattrs));
	struct erofs_xattr redirect = overlay_xattr(REDIRECT_NAME, "", 0);
	uint32_t contents = index->header->content_count;

	*result = xattrs;
	if (xattrs)
		xattrs->redirects = calloc((size_t)contents + 1, sizeof(*xattrs->redirects));
	if (!xattrs || !xattrs->redirects)
		return ls_fail(err, LS_NO_MEMORY, "writing an EROFS image: out of memory for %u redirects", contents);
	xattrs->index = index;
	xattrs->locations = locations;
	xattrs->metacopy.xattr = overlay_xattr(METACOPY_NAME, "", 0);
	xattrs->content_filter = erofs_xattr_filter_bit(&xattrs->metacopy.xattr) | erofs_xattr_filter_bit(&redirect);
	return LS_OK;
}

void erofs_xattrs_free(struct erofs_xattrs *xattrs)
{
	if (!xattrs)
		return;
	ls_table_free(&xattrs->set_numbers);
	ls_table_free(&xattrs->entry_numbers);
	free(xattrs->sets);
	free(xattrs->entries);
	free(xattrs->members);
	free(xattrs->redirects);
	free(xattrs);
}

/* Whether an entry is the one that stands behind the last. */
static int is_same_entry(const void *xattrs, uint32_t number)
{
	const struct erofs_xattrs *x = xattrs;
	const struct ls_bytes a = x->entries[number].encoded, b = x->entries[x->entry_numbers.count].encoded;

	return ls_equal(a.bytes, a.length, b.bytes, b.length);
}

/* The number of the entry that the cursor is at; one that comes for the first time is parsed. */
static int number_entry(struct erofs_xattrs *xattrs, uint32_t record, const struct ls_xattr_cursor *cursor,
                        uint32_t *number, struct ls_error *err)
{
	size_t lengths = sizeof(uint16_t) + sizeof(uint32_t);
	struct ls_bytes encoded = {(const uint8_t *)cursor->name - lengths,
	                           lengths + cursor->name_length + cursor->value_length};
	uint64_t hash = ls_siphash13(xattrs->index->header->hash_key, encoded.bytes, encoded.length);
	uint32_t known = xattrs->entry_numbers.count;
	struct entry *entry;
	int status = ls_array_reserve(&xattrs->entries, &xattrs->entry_capacity, (size_t)known + 1, sizeof(*entry),
	                              "extended attributes of an EROFS image", err);

	if (status)
		return status;
	entry = &xattrs->entries[known];
	*entry = (struct entry){.encoded = encoded, .shared = NOT_SHARED};
	status = ls_table_number(&xattrs->entry_numbers, (uint32_t)hash, is_same_entry, xattrs, number, err);
	if (status || *number < known)
		return status;
	status = erofs_xattr_parse(xattrs->index, record, cursor, &entry->xattr, err);
	if (!status)
		entry->filter_bit = erofs_xattr_filter_bit(&entry->xattr);
	return status;
}

static int add_member(struct erofs_xattrs *xattrs, struct set *set, const struct ls_xattr_cursor *cursor,
                      struct ls_error *err)
{
	const struct entry *entry;
	uint32_t number;
	int status = number_entry(xattrs, set->record, cursor, &number, err);

	if (!status)
		status = ls_array_reserve(&xattrs->members, &xattrs->member_capacity, (size_t)xattrs->member_count + 1,
		                          sizeof(struct member), "extended attributes of an EROFS image", err);
	if (status)
		return status;
	entry = &xattrs->entries[number];
	set->filter &= ~entry->filter_bit;
	set->count++;
	xattrs->members[xattrs->member_count++] =
	    (struct member){.entry = number, .bytes = erofs_xattr_bytes(&entry->xattr)};
	return LS_OK;
}

static int add_members(struct erofs_xattrs *xattrs, struct set *set, struct ls_error *err)
{
	struct ls_xattr_cursor cursor = {0};
	int status;

	while (!(status = ls_index_xattr_next(xattrs->index, set->block, &cursor, err)) && cursor.name) {
		if (erofs_xattr_is_shown(&cursor))
			status = add_member(xattrs, set, &cursor, err);
		if (status)
			return status;
	}
	return status;
}

/* Whether a set is of the block of the one that stands behind the last. */
static int is_same_set(const void *xattrs, uint32_t number)
{
	const struct erofs_xattrs *x = xattrs;

	return x->sets[number].block == x->sets[x->set_numbers.count].block;
}

int erofs_xattrs_collect(struct erofs_xattrs *xattrs, uint32_t record, uint32_t *result, struct ls_error *err)
{
	const struct ls_record *inode = &xattrs->index->records[record];
	uint32_t number, known = xattrs->set_numbers.count;
	uint64_t hash;
	int status;

	*result = LS_NONE;
	if (S_ISREG(inode->mode) && inode->data != LS_NONE) {
		xattrs->metacopy.uses++;
		xattrs->redirects[inode->data].uses++;
	}
	if (!inode->xattrs)
		return LS_OK;
	status = ls_array_reserve(&xattrs->sets, &xattrs->set_capacity, (size_t)known + 1, sizeof(*xattrs->sets),
	                          "extended attributes of an EROFS image", err);
	if (status)
		return status;
	xattrs->sets[known] =
	    (struct set){.block = inode->xattrs, .record = record, .first = xattrs->member_count, .filter = UINT32_MAX};
	hash = ls_siphash13(xattrs->index->header->hash_key, &inode->xattrs, sizeof(inode->xattrs));
	status = ls_table_number(&xattrs->set_numbers, (uint32_t)hash, is_same_set, xattrs, &number, err);
	if (!status && number == known)
		status = add_members(xattrs, &xattrs->sets[number], err);
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
		return erofs_refuse(
		    xattrs->index, set->record, LS_LIMIT, err,
		    "its %u extended attributes exceed what an EROFS inode holds (256 KiB and %u shared ones)",
		    set->count, SET_SHARED_MAX);
	return LS_OK;
}

static int share_set(const struct erofs_xattrs *xattrs, struct set *set, struct ls_error *err)
{
	struct member *members;
	uint64_t body_bytes = 0;

	if (!set->count) /* none of its attributes is shown, and there may be no members at all */
		return LS_OK;
	members = xattrs->members + set->first;
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

static void place_metacopy_and_redirects(struct erofs_xattrs *xattrs)
{
	uint32_t bytes = erofs_xattr_bytes(&xattrs->metacopy.xattr);
	struct erofs_xattr xattr;
	char value[REDIRECT_BYTES];

	xattrs->metacopy.shared =
	    is_worth_sharing(xattrs->metacopy.uses, bytes) ? next_shared_number(xattrs, bytes) : NOT_SHARED;
	for (uint32_t i = 0; i < xattrs->index->header->content_count; i++) {
		struct redirect *redirect = &xattrs->redirects[i];

		redirect->shared = NOT_SHARED;
		if (redirect->uses < 2)
			continue;
		xattr = redirect_xattr(xattrs, i, value);
		bytes = erofs_xattr_bytes(&xattr);
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
	place_metacopy_and_redirects(xattrs);
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

static uint32_t bytes_in_inode(const struct erofs_xattr *xattr, uint32_t shared)
{
	return shared == NOT_SHARED ? erofs_xattr_bytes(xattr) : SHARED_NUMBER_BYTES;
}

uint32_t erofs_xattrs_size(const struct erofs_xattrs *xattrs, uint32_t set, uint32_t content)
{
	uint32_t body = set == LS_NONE ? 0 : xattrs->sets[set].body_bytes;
	char value[REDIRECT_BYTES];

	if (content != LS_NONE) {
		struct erofs_xattr redirect = redirect_xattr(xattrs, content, value);

		body += bytes_in_inode(&xattrs->metacopy.xattr, xattrs->metacopy.shared);
		body += bytes_in_inode(&redirect, xattrs->redirects[content].shared);
	}
	return body ? body + (uint32_t)sizeof(struct erofs_xattr_header) : 0;
}

/* An inode's xattrs while they are written: all shared numbers come before the first own entry. */
struct body {
	struct erofs_xattr_header header;
	uint8_t *at;
};

static void put_number(const struct erofs_xattrs *xattrs, struct body *body, uint32_t shared)
{
	uint32_t number = xattrs->shared_base + shared;

	if (shared == NOT_SHARED)
		return;
	memcpy(body->at, &number, sizeof(number));
	body->at += sizeof(number);
	body->header.shared_count++;
}

static void put_own(struct body *body, const struct erofs_xattr *xattr, uint32_t shared)
{
	if (shared == NOT_SHARED)
		body->at = erofs_xattr_put(xattr, body->at);
}

/* An entry that is shared elsewhere may be an inode's own in a set that has too many. */
static uint32_t number_in_set(const struct erofs_xattrs *xattrs, const struct member *member)
{
	return member->is_shared ? xattrs->entries[member->entry].shared : NOT_SHARED;
}

void erofs_xattrs_write(const struct erofs_xattrs *xattrs, uint32_t set_number, uint32_t content, uint8_t *out)
{
	static const struct set empty = {.filter = UINT32_MAX};
	const struct set *set = set_number == LS_NONE ? &empty : &xattrs->sets[set_number];
	const struct member *members = set->count ? xattrs->members + set->first : NULL;
	struct body body = {.header.filter = set->filter, .at = out + sizeof(struct erofs_xattr_header)};
	struct erofs_xattr redirect;
	char value[REDIRECT_BYTES];

	if (content != LS_NONE) {
		put_number(xattrs, &body, xattrs->metacopy.shared);
		put_number(xattrs, &body, xattrs->redirects[content].shared);
	}
	for (uint32_t i = 0; i < set->count; i++)
		put_number(xattrs, &body, number_in_set(xattrs, &members[i]));
	if (content != LS_NONE) {
		redirect = redirect_xattr(xattrs, content, value);
		put_own(&body, &xattrs->metacopy.xattr, xattrs->metacopy.shared);
		put_own(&body, &redirect, xattrs->redirects[content].shared);
		body.header.filter &= ~xattrs->content_filter;
	}
	for (uint32_t i = 0; i < set->count; i++)
		put_own(&body, &xattrs->entries[members[i].entry].xattr, number_in_set(xattrs, &members[i]));
	memcpy(out, &body.header, sizeof(body.header));
}

static void put_shared(const struct erofs_xattr *xattr, uint32_t shared, uint8_t *out)
{
	if (shared != NOT_SHARED)
		erofs_xattr_put(xattr, out + (uint64_t)shared * 4);
}

void erofs_xattrs_write_shared(const struct erofs_xattrs *xattrs, uint8_t *out)
{
	char value[REDIRECT_BYTES];

	put_shared(&xattrs->metacopy.xattr, xattrs->metacopy.shared, out);
	for (uint32_t i = 0; i < xattrs->index->header->content_count; i++) {
		struct erofs_xattr redirect = redirect_xattr(xattrs, i, value);

		put_shared(&redirect, xattrs->redirects[i].shared, out);
	}
	for (uint32_t i = 0; i < xattrs->entry_numbers.count; i++)
		put_shared(&xattrs->entries[i].xattr, xattrs->entries[i].shared, out);
}
