#include "tar_pax.h"
#include "tar_sparse.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SPARSE_PREFIX "GNU.sparse."

static const char *const key_names[TAR_KEYS] = {
    [TAR_KEY_PATH] = "path",
    [TAR_KEY_LINKPATH] = "linkpath",
    [TAR_KEY_SIZE] = "size",
    [TAR_KEY_UID] = "uid",
    [TAR_KEY_GID] = "gid",
    [TAR_KEY_MTIME] = "mtime",
    [TAR_KEY_SPARSE_NAME] = SPARSE_PREFIX "name",
    [TAR_KEY_SPARSE_MAJOR] = SPARSE_PREFIX "major",
    [TAR_KEY_SPARSE_MINOR] = SPARSE_PREFIX "minor",
    [TAR_KEY_SPARSE_SIZE] = SPARSE_PREFIX "size",
    [TAR_KEY_SPARSE_REALSIZE] = SPARSE_PREFIX "realsize",
    [TAR_KEY_SPARSE_NUMBLOCKS] = SPARSE_PREFIX "numblocks",
    [TAR_KEY_SPARSE_MAP] = SPARSE_PREFIX "map",
};

static int equal(struct ls_bytes text, const char *name)
{
	return ls_equal(text.bytes, text.length, name, strlen(name));
}

enum tar_number tar_parse_decimal(const uint8_t *text, size_t length, uint64_t *value)
{
	uint64_t number = 0;
	int too_large = 0;

	if (!length)
		return TAR_NUMBER_GARBAGE;
	for (size_t i = 0; i < length; i++) {
		if (text[i] < '0' || text[i] > '9')
			return TAR_NUMBER_GARBAGE;
		too_large |= __builtin_mul_overflow(number, 10, &number);
		too_large |= __builtin_add_overflow(number, (uint64_t)(text[i] - '0'), &number);
	}
	*value = number;
	return too_large ? TAR_NUMBER_RANGE : TAR_NUMBER_OK;
}

/* Forget what the pax records before the next entry say; what GNU's 'L' and 'K' say stays. */
static void forget_records(struct ls_tar *tar)
{
	tar->local.present &= UINT32_C(1) << TAR_KEY_LONG_NAME | UINT32_C(1) << TAR_KEY_LONG_LINK;
	tar->xattr_count = 0;
	tar->sparse = (struct tar_sparse){.extents = tar->sparse.extents, .capacity = tar->sparse.capacity};
}

void tar_values_reset(struct ls_tar *tar)
{
	forget_records(tar);
	tar->local.bytes.length = 0;
	tar->local.present = 0;
}

static struct tar_values *extended_values(struct ls_tar *tar)
{
	return tar->extended_type == 'g' ? &tar->global : &tar->local;
}

int tar_extended_begin(struct ls_tar *tar, uint8_t type, uint64_t size, struct ls_error *err)
{
	struct tar_values *values;

	tar->extended_type = type;
	values = extended_values(tar);
	if (size > tar->limits.extended_bytes || values->bytes.length > tar->limits.extended_bytes - size)
		return tar_fail(tar, err, LS_LIMIT,
		                "%" PRIu64 " more bytes of extended header pass the limit extended_bytes (%zu)", size,
		                tar->limits.extended_bytes);
	if (type == 'x')
		forget_records(tar);
	tar->extended_start = values->bytes.length;
	tar->left = size;
	tar->padding = -size & (TAR_BLOCK - 1);
	tar->stage = TAR_EXTENDED;
	return size ? LS_OK : tar_extended_step(tar, err);
}

static void set_value(struct tar_values *values, enum tar_key key, struct ls_bytes value)
{
	values->present |= UINT32_C(1) << key;
	values->value[key] = (struct tar_range){(size_t)(value.bytes - values->bytes.bytes), value.length};
}

static int add_xattr(struct ls_tar *tar, struct ls_bytes name, struct ls_bytes value, struct ls_error *err)
{
	const uint8_t *base = tar->local.bytes.bytes;
	int status;

	if (!name.length)
		return tar_fail(tar, err, LS_INVALID, "a pax record " TAR_XATTR_PREFIX " has no attribute name");
	status = ls_array_reserve(&tar->xattr_ranges, &tar->xattr_range_capacity, tar->xattr_count + 1,
	                          sizeof(*tar->xattr_ranges), "xattrs of a tar entry", err);
	if (status)
		return status;
	tar->xattr_ranges[tar->xattr_count++] = (struct tar_xattr_range){
	    {(size_t)(name.bytes - base), name.length},
	    {(size_t)(value.bytes - base), value.length},
	};
	return LS_OK;
}

/* An empty value takes the earlier ones back (POSIX.1-2017, pax, "pax Extended Header"): what the header itself says
 * stands again. An xattr may be empty, and GNU tar writes it so. GNU tar's %3D for '=' in a name is left
 * alone, as docker does. */
static int apply_record(struct ls_tar *tar, struct ls_bytes key, struct ls_bytes value, struct ls_error *err)
{
	int xattr = ls_begins_with(key.bytes, key.length, TAR_XATTR_PREFIX);
	int sparse = ls_begins_with(key.bytes, key.length, SPARSE_PREFIX);
	size_t prefix = strlen(TAR_XATTR_PREFIX);

	if ((xattr || sparse) && tar->extended_type == 'g')
		return tar_fail(tar, err, LS_INVALID, "a global pax header has %s, which cannot hold for every entry",
		                LS_SHOWN(key.bytes, key.length));
	if (xattr)
		return add_xattr(tar, (struct ls_bytes){key.bytes + prefix, key.length - prefix}, value, err);
	if (sparse && equal(key, SPARSE_PREFIX "offset"))
		return tar_sparse_offset(tar, value.bytes, value.length, err);
	if (sparse && equal(key, SPARSE_PREFIX "numbytes"))
		return tar_sparse_numbytes(tar, value.bytes, value.length, err);
	for (int i = 0; i < TAR_KEYS; i++)
		if (key_names[i] && equal(key, key_names[i]))
			set_value(extended_values(tar), (enum tar_key)i, value);
	return LS_OK;
}

/* "LENGTH KEY=VALUE\n", LENGTH counting the whole record. Returns its length, 0 when it is malformed. */
static size_t split_record(const uint8_t *record, size_t room, struct ls_bytes *key, struct ls_bytes *value)
{
	const uint8_t *space = memchr(record, ' ', room), *equals;
	uint64_t length;

	if (!space || tar_parse_decimal(record, (size_t)(space - record), &length) != TAR_NUMBER_OK)
		return 0;
	if (length > room || record + length <= space + 1 || record[length - 1] != '\n')
		return 0;
	key->bytes = space + 1;
	equals = memchr(key->bytes, '=', (size_t)(record + length - key->bytes));
	if (!equals || equals == key->bytes)
		return 0;
	key->length = (size_t)(equals - key->bytes);
	value->bytes = equals + 1;
	value->length = (size_t)(record + length - 1 - value->bytes);
	return memchr(key->bytes, 0, key->length) ? 0 : (size_t)length;
}

static int read_records(struct ls_tar *tar, const uint8_t *body, size_t length, struct ls_error *err)
{
	for (size_t at = 0; at < length;) {
		struct ls_bytes key, value;
		size_t record = split_record(body + at, length - at, &key, &value);
		int status;

		if (!record)
			return tar_fail(
			    tar, err, LS_CORRUPT,
			    "the pax record \"%s\", %zu bytes into the extended header, is not LENGTH KEY=VALUE",
			    LS_SHOWN(body + at, length - at), at);
		status = apply_record(tar, key, value, err);
		if (status)
			return status;
		at += record;
	}
	return LS_OK;
}

int tar_extended_step(struct ls_tar *tar, struct ls_error *err)
{
	struct tar_values *values = extended_values(tar);
	size_t here = (size_t)(tar->end - tar->at);
	size_t n = tar->left < here ? (size_t)tar->left : here;
	struct ls_bytes body;
	int status = ls_buffer_append(&values->bytes, tar->at, n, err);

	if (status)
		return status;
	tar->at += n;
	tar->position += n;
	tar->left -= n;
	if (tar->left)
		return LS_OK;
	tar->left = tar->padding;
	tar->stage = tar->left ? TAR_SKIP : TAR_HEADER;
	body.length = values->bytes.length - tar->extended_start;
	if (!body.length)
		return LS_OK;
	body.bytes = values->bytes.bytes + tar->extended_start;
	if (tar->extended_type == 'x' || tar->extended_type == 'g')
		return read_records(tar, body.bytes, body.length, err);
	body.length = strnlen((const char *)body.bytes, body.length);
	set_value(values, tar->extended_type == 'L' ? TAR_KEY_LONG_NAME : TAR_KEY_LONG_LINK, body);
	return LS_OK;
}

int tar_value(const struct ls_tar *tar, enum tar_key key, struct ls_bytes *value)
{
	uint32_t bit = UINT32_C(1) << key;
	const struct tar_values *values = tar->local.present & bit ? &tar->local : &tar->global;

	if (!(values->present & bit) || !values->value[key].length)
		return 0;
	value->bytes = values->bytes.bytes + values->value[key].offset;
	value->length = values->value[key].length;
	return 1;
}

int tar_value_unsigned(const struct ls_tar *tar, enum tar_key key, int *found, uint64_t *number, struct ls_error *err)
{
	struct ls_bytes text;
	enum tar_number result, negative = TAR_NUMBER_GARBAGE;

	*found = tar_value(tar, key, &text);
	if (!*found)
		return LS_OK;
	result = tar_parse_decimal(text.bytes, text.length, number);
	if (result == TAR_NUMBER_OK)
		return LS_OK;
	if (text.bytes[0] == '-')
		negative = tar_parse_decimal(text.bytes + 1, text.length - 1, number);
	if (result == TAR_NUMBER_RANGE || negative != TAR_NUMBER_GARBAGE)
		return tar_fail(tar, err, LS_INVALID, "the pax record %s=%s is negative or does not fit 64 bits",
		                key_names[key], LS_SHOWN(text.bytes, text.length));
	return tar_fail(tar, err, LS_CORRUPT, "the pax record %s=%s is not a decimal number", key_names[key],
	                LS_SHOWN(text.bytes, text.length));
}

/* The first nine digits behind the point, as nanoseconds. */
static enum tar_number parse_fraction(const uint8_t *text, size_t length, uint32_t *nanoseconds)
{
	uint32_t unit = 100000000;

	*nanoseconds = 0;
	for (size_t i = 0; i < length; i++, unit /= 10) {
		if (text[i] < '0' || text[i] > '9')
			return TAR_NUMBER_GARBAGE;
		*nanoseconds += unit * (uint32_t)(text[i] - '0');
	}
	return TAR_NUMBER_OK;
}

/* [-]SECONDS[.FRACTION] (POSIX.1-2017, pax, "pax Extended Header File Times"), as seconds rounded down and the
 * nanoseconds above them. */
static enum tar_number parse_time(struct ls_bytes text, int64_t *seconds, uint32_t *nanoseconds)
{
	int negative = text.length && text.bytes[0] == '-';
	const uint8_t *at = text.bytes + negative, *end = text.bytes + text.length;
	const uint8_t *point = memchr(at, '.', (size_t)(end - at));
	uint64_t whole;
	enum tar_number result = tar_parse_decimal(at, (size_t)((point ? point : end) - at), &whole);

	*nanoseconds = 0;
	if (result == TAR_NUMBER_OK && point)
		result = parse_fraction(point + 1, (size_t)(end - point - 1), nanoseconds);
	if (result != TAR_NUMBER_OK)
		return result;
	if (whole > INT64_MAX - 1)
		return TAR_NUMBER_RANGE;
	*seconds = negative ? -(int64_t)whole : (int64_t)whole;
	if (negative && *nanoseconds) {
		*seconds -= 1;
		*nanoseconds = 1000000000 - *nanoseconds;
	}
	return TAR_NUMBER_OK;
}

int tar_value_mtime(struct ls_tar *tar, int *found, struct ls_error *err)
{
	struct ls_bytes text;
	enum tar_number result;

	*found = tar_value(tar, TAR_KEY_MTIME, &text);
	if (!*found)
		return LS_OK;
	result = parse_time(text, &tar->entry.mtime_seconds, &tar->entry.mtime_nanoseconds);
	if (result == TAR_NUMBER_OK)
		return LS_OK;
	if (result == TAR_NUMBER_RANGE)
		return tar_fail(tar, err, LS_INVALID, "the pax record mtime=%s does not fit 64 bits",
		                LS_SHOWN(text.bytes, text.length));
	return tar_fail(tar, err, LS_CORRUPT, "the pax record mtime=%s is not a decimal number",
	                LS_SHOWN(text.bytes, text.length));
}

/* By name, then by the order in the archive: values lie in that order. */
static int compare_xattrs(const void *a, const void *b)
{
	const struct ls_xattr *left = a, *right = b;
	int order = ls_compare(left->name.bytes, left->name.length, right->name.bytes, right->name.length);

	if (order)
		return order;
	return left->name.bytes < right->name.bytes ? -1 : left->name.bytes > right->name.bytes;
}

static int same_name(const struct ls_xattr *a, const struct ls_xattr *b)
{
	return ls_equal(a->name.bytes, a->name.length, b->name.bytes, b->name.length);
}

int tar_collect_xattrs(struct ls_tar *tar, struct ls_error *err)
{
	const uint8_t *base = tar->local.bytes.bytes;
	size_t kept = 0;
	int status = ls_array_reserve(&tar->xattrs, &tar->xattr_capacity, tar->xattr_count, sizeof(*tar->xattrs),
	                              "xattrs of a tar entry", err);

	if (status)
		return status;
	for (size_t i = 0; i < tar->xattr_count; i++) {
		const struct tar_xattr_range *range = &tar->xattr_ranges[i];

		tar->xattrs[i].name = (struct ls_bytes){base + range->name.offset, range->name.length};
		tar->xattrs[i].value = (struct ls_bytes){base + range->value.offset, range->value.length};
	}
	if (tar->xattr_count > 1)
		qsort(tar->xattrs, tar->xattr_count, sizeof(*tar->xattrs), compare_xattrs);
	for (size_t i = 0; i < tar->xattr_count; i++)
		if (i + 1 == tar->xattr_count || !same_name(&tar->xattrs[i], &tar->xattrs[i + 1]))
			tar->xattrs[kept++] = tar->xattrs[i];
	tar->entry.xattr_count = kept;
	return LS_OK;
}
