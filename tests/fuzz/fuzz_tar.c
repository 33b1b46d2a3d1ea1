/* libFuzzer harness of the tar walk: any bytes, cut into spans in any way, give events that keep the promises of tar.h
 * or an error, and the same ones however they are cut.
 *
 * The first byte of an input chooses the spans, the rest is the archive. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "poison.h"
#include "require.h"
#include "tar/tar.h"
#include "tar/tar_format.h"

#define BLOCK TAR_BLOCK

static const struct ls_tar_limits limits = {
    .path_bytes = 300,
    .name_bytes = 100,
    .extended_bytes = 4096,
    .sparse_extents = 64,
    .file_bytes = 1 << 20,
    .entries = 20,
};

/* All that a walk says, as one number that does not depend on how it was cut. */
struct trace {
	uint64_t hash;
	uint64_t raw, data; /* bytes, in all */
	uint64_t content;   /* bytes still to come of the last entry */
	int status;
};

static void mix(struct trace *trace, const void *bytes, size_t length)
{
	const uint8_t *at = bytes;

	for (size_t i = 0; i < length; i++)
		trace->hash = (trace->hash ^ at[i]) * UINT64_C(1099511628211);
}

static void mix_number(struct trace *trace, uint64_t number)
{
	mix(trace, &number, sizeof(number));
}

static void mix_text(struct trace *trace, struct ls_bytes text)
{
	mix_number(trace, text.length);
	mix(trace, text.bytes, text.length);
}

static void check_name(struct ls_bytes name)
{
	REQUIRE(name.length > 0 && name.length <= limits.path_bytes);
	REQUIRE(!memchr(name.bytes, 0, name.length));
}

static void check_extents(const struct ls_tar_entry *entry)
{
	uint64_t end = 0, sum = 0;

	REQUIRE(entry->extent_count <= limits.sparse_extents);
	for (size_t i = 0; i < entry->extent_count; i++) {
		const struct ls_tar_extent *extent = &entry->extents[i];

		REQUIRE(extent->length > 0);
		REQUIRE(i == 0 ? extent->offset >= end : extent->offset > end);
		end = extent->offset + extent->length;
		sum += extent->length;
	}
	REQUIRE(end <= entry->size);
	REQUIRE(sum == entry->stored_size);
}

static void see_entry(struct trace *trace, const struct ls_tar_entry *entry)
{
	int linked = entry->type == LS_TAR_HARDLINK || entry->type == LS_TAR_SYMLINK;

	REQUIRE(trace->content == 0);
	check_name(entry->path);
	if (linked)
		check_name(entry->link);
	REQUIRE(linked || entry->link.length == 0);
	REQUIRE(entry->mode <= 07777 && entry->mtime_nanoseconds < 1000000000);
	REQUIRE(entry->size <= limits.file_bytes);
	REQUIRE(entry->type == LS_TAR_REGULAR || entry->size == 0);
	REQUIRE(entry->position < trace->raw + trace->data);
	if (entry->is_sparse)
		check_extents(entry);
	else
		REQUIRE(entry->extent_count == 0 && entry->stored_size == entry->size);
	for (size_t i = 0; i < entry->xattr_count; i++) {
		const struct ls_xattr *xattr = &entry->xattrs[i];

		REQUIRE(xattr->name.length > 0);
		mix_text(trace, xattr->name);
		mix_text(trace, xattr->value);
	}
	for (size_t i = 0; i < entry->extent_count; i++)
		mix_number(trace, entry->extents[i].offset);
	mix_text(trace, entry->path);
	mix_text(trace, entry->link);
	mix_number(trace, entry->type);
	mix_number(trace, entry->mode);
	mix_number(trace, entry->uid);
	mix_number(trace, entry->gid);
	mix_number(trace, (uint64_t)entry->mtime_seconds);
	mix_number(trace, entry->mtime_nanoseconds);
	mix_number(trace, entry->size);
	mix_number(trace, entry->position);
	trace->content = entry->stored_size;
}

/* Walk one span; *at is where its first byte that no event has had yet lies. */
static int walk_span(struct ls_tar *tar, const uint8_t *at, size_t length, struct trace *trace, struct ls_error *err)
{
	const uint8_t *end = at + length;

	ls_tar_feed(tar, at, length);
	for (;;) {
		struct ls_tar_event event;
		int status = ls_tar_next(tar, &event, err);

		if (status)
			return status;
		if (event.kind == LS_TAR_NEED_MORE)
			break;
		if (event.kind == LS_TAR_ENTRY) {
			see_entry(trace, event.entry);
			continue;
		}
		REQUIRE(event.bytes.bytes == at && event.bytes.length > 0 && event.bytes.length <= (size_t)(end - at));
		at += event.bytes.length;
		if (event.kind == LS_TAR_RAW) {
			trace->raw += event.bytes.length;
			REQUIRE(trace->content == 0);
		} else {
			trace->data += event.bytes.length;
			REQUIRE(event.bytes.length <= trace->content);
			trace->content -= event.bytes.length;
		}
	}
	REQUIRE(at == end);
	return LS_OK;
}

static void walk(const uint8_t *bytes, size_t length, size_t span, struct trace *trace)
{
	struct ls_tar *tar;
	struct ls_error err = {0};

	REQUIRE(ls_tar_new(&tar, &limits, &err) == LS_OK);
	while (length && !trace->status) {
		size_t n = span < length ? span : length;
		uint8_t *copy = lend(bytes, n);

		trace->status = walk_span(tar, copy, n, trace, &err);
		take_back(copy, n);
		bytes += n;
		length -= n;
	}
	if (!trace->status)
		trace->status = ls_tar_finish(tar, &err);
	if (trace->status)
		mix(trace, err.message, strlen(err.message));
	REQUIRE(!trace->status || (err.status == trace->status && strstr(err.message, "byte ")));
	ls_tar_free(tar);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	struct trace whole = {0}, cut = {0};

	if (!length)
		return 0;
	walk(bytes + 1, length - 1, SIZE_MAX, &whole);
	walk(bytes + 1, length - 1, bytes[0] < 128 ? (size_t)bytes[0] + 1 : (size_t)bytes[0] * 8, &cut);
	REQUIRE(whole.hash == cut.hash && whole.status == cut.status);
	/* After an error the whole span's events are lost that the cut one has given already. */
	REQUIRE(whole.status || (whole.raw == cut.raw && whole.data == cut.data));
	return 0;
}

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t length, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_length, const uint8_t *b, size_t b_length, uint8_t *out,
                                 size_t most, unsigned seed);

/* A number below `bound`, or 0. */
static size_t pick(unsigned *seed, size_t bound)
{
	*seed = *seed * 1664525 + 1013904223;
	return bound ? (*seed >> 8) % bound : 0;
}

static int is_header(const uint8_t *block)
{
	return memcmp(block + TAR_AT_MAGIC, "ustar", 5) == 0;
}

/* A header block of the input, NULL where the one that was picked is none. */
static uint8_t *pick_header(uint8_t *bytes, size_t length, unsigned *seed)
{
	uint8_t *block = bytes + 1 + BLOCK * pick(seed, (length - 1) / BLOCK);

	return length > BLOCK && is_header(block) ? block : NULL;
}

static void put_octal(uint8_t *field, size_t width, uint64_t number)
{
	field[--width] = 0;
	while (width--) {
		field[width] = (uint8_t)('0' + (number & 7));
		number >>= 3;
	}
}

/* Most mutations break a checksum, and nothing behind it would be reached. */
static void mend_checksums(uint8_t *bytes, size_t length)
{
	for (size_t at = 1; at + BLOCK <= length; at += BLOCK) {
		uint8_t *block = bytes + at;
		unsigned sum = TAR_ID_BYTES * ' ';

		if (!is_header(block))
			continue;
		for (size_t i = 0; i < BLOCK; i++)
			sum += i - TAR_AT_CHECKSUM < TAR_ID_BYTES ? 0 : block[i];
		put_octal(block + TAR_AT_CHECKSUM, TAR_ID_BYTES, sum);
	}
}

static void mutate_field(uint8_t *bytes, size_t length, unsigned *seed)
{
	static const struct {
		size_t at, width;
	} fields[] = {
	    {TAR_AT_NAME, TAR_NAME_BYTES},   {TAR_AT_MODE, TAR_ID_BYTES},
	    {TAR_AT_UID, TAR_ID_BYTES},      {TAR_AT_GID, TAR_ID_BYTES},
	    {TAR_AT_SIZE, TAR_NUMBER_BYTES}, {TAR_AT_MTIME, TAR_NUMBER_BYTES},
	    {TAR_AT_LINK, TAR_NAME_BYTES},   {TAR_AT_MAJOR, TAR_ID_BYTES},
	    {TAR_AT_MINOR, TAR_ID_BYTES},    {TAR_AT_PREFIX, TAR_PREFIX_BYTES},
	    {386, 4 * 2 * TAR_NUMBER_BYTES}, {483, TAR_NUMBER_BYTES}, /* of GNU's old sparse form */
	};
	uint8_t *block = pick_header(bytes, length, seed);
	size_t field = pick(seed, sizeof(fields) / sizeof(*fields));

	if (!block)
		return;
	if (fields[field].at == TAR_AT_SIZE && pick(seed, 2))
		put_octal(block + TAR_AT_SIZE, TAR_NUMBER_BYTES, pick(seed, 3 * BLOCK));
	else
		LLVMFuzzerMutate(block + fields[field].at, fields[field].width, fields[field].width);
}

static void change_type(uint8_t *bytes, size_t length, unsigned *seed)
{
	static const char types[] = "01234567xgLKSV";
	uint8_t *block = pick_header(bytes, length, seed);

	if (block)
		block[TAR_AT_TYPE] = (uint8_t)types[pick(seed, sizeof(types))];
}

/* "LENGTH KEY=VALUE\n" at `to`, which has room for it; returns its length. */
static size_t put_record(char *to, size_t room, const char *key, const char *value, size_t value_length)
{
	size_t rest = strlen(key) + value_length + 3, length = rest + 1;
	int written;

	while (length != rest + (size_t)snprintf(NULL, 0, "%zu", length))
		length++;
	if (length >= room)
		return 0;
	written = snprintf(to, room, "%zu %s=", length, key);
	memcpy(to + written, value, value_length);
	to[length - 1] = '\n';
	return length;
}

/* Make the body of an extended header some records that are well formed, of keys that mean something. */
static void write_records(uint8_t *bytes, size_t length, unsigned *seed)
{
	static const char *const keys[] = {
	    "path",
	    "linkpath",
	    "size",
	    "uid",
	    "gid",
	    "mtime",
	    "comment",
	    "GNU.sparse.major",
	    "GNU.sparse.minor",
	    "GNU.sparse.name",
	    "GNU.sparse.size",
	    "GNU.sparse.realsize",
	    "GNU.sparse.numblocks",
	    "GNU.sparse.map",
	    "GNU.sparse.offset",
	    "GNU.sparse.numbytes",
	    "SCHILY.xattr.user.a",
	    "SCHILY.xattr.user.b",
	    "SCHILY.xattr.",
	};
	static const char *const values[] = {"",
	                                     "0",
	                                     "1",
	                                     "2",
	                                     "512",
	                                     "1024",
	                                     "-1",
	                                     "1.5",
	                                     "-0.000000001",
	                                     "0,1",
	                                     "0,1,2,510",
	                                     "18446744073709551615",
	                                     "9223372036854775807",
	                                     "a/b"};
	uint8_t *block = pick_header(bytes, length, seed);
	char body[BLOCK];
	size_t used = 0, room;

	if (!block || (size_t)(block - bytes) + 2 * BLOCK > length)
		return;
	if (pick(seed, 4) || (block[TAR_AT_TYPE] != 'x' && block[TAR_AT_TYPE] != 'g'))
		block[TAR_AT_TYPE] = 'x';
	for (size_t records = 1 + pick(seed, 8); records; records--) {
		const char *key = keys[pick(seed, sizeof(keys) / sizeof(*keys))];
		char value[64] = "";
		size_t value_length;

		strcpy(value, values[pick(seed, sizeof(values) / sizeof(*values))]);
		value_length = strlen(value);
		if (pick(seed, 2))
			value_length = LLVMFuzzerMutate((uint8_t *)value, value_length, sizeof(value));
		room = sizeof(body) - used;
		used += put_record(body + used, room, key, value, value_length);
	}
	memset(block + BLOCK, 0, BLOCK);
	memcpy(block + BLOCK, body, used);
	put_octal(block + TAR_AT_SIZE, TAR_NUMBER_BYTES, used);
}

/* Repeat, drop or move blocks: what lies behind them stays where blocks begin. */
static size_t shuffle_blocks(uint8_t *bytes, size_t length, size_t most, unsigned *seed)
{
	size_t blocks = (length - 1) / BLOCK, from = pick(seed, blocks), to = pick(seed, blocks);
	uint8_t *block = bytes + 1 + from * BLOCK, *other = bytes + 1 + to * BLOCK;
	uint8_t kept[BLOCK];

	if (!blocks)
		return length;
	memcpy(kept, block, BLOCK);
	switch (pick(seed, 3)) {
	case 0:
		memmove(block, block + BLOCK, (size_t)(bytes + length - block) - BLOCK);
		return length - BLOCK;
	case 1:
		if (length + BLOCK > most)
			return length;
		memmove(other + BLOCK, other, (size_t)(bytes + length - other));
		memcpy(other, kept, BLOCK);
		return length + BLOCK;
	default:
		memcpy(block, other, BLOCK);
		memcpy(other, kept, BLOCK);
		return length;
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed)
{
	size_t times = 1 + pick(&seed, 3);

	if (!length || pick(&seed, 16) == 0)
		return LLVMFuzzerMutate(bytes, length, most);
	for (; times && length > 1; times--) {
		switch (pick(&seed, 8)) {
		case 0:
			change_type(bytes, length, &seed);
			break;
		case 1:
			write_records(bytes, length, &seed);
			break;
		case 2:
			length = shuffle_blocks(bytes, length, most, &seed);
			break;
		case 3:
		case 4:
			length = LLVMFuzzerMutate(bytes, length, most);
			break;
		default:
			mutate_field(bytes, length, &seed);
		}
	}
	mend_checksums(bytes, length);
	return length;
}

/* The first blocks of one input, and of the other those behind a block. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_length, const uint8_t *b, size_t b_length, uint8_t *out,
                                 size_t most, unsigned seed)
{
	size_t from_a = 1 + BLOCK * pick(&seed, a_length / BLOCK + 1),
	       skipped = 1 + BLOCK * pick(&seed, b_length / BLOCK + 1);
	size_t from_b = skipped < b_length ? b_length - skipped : 0;

	if (from_a > a_length)
		from_a = a_length;
	if (from_a > most)
		from_a = most;
	if (from_b > most - from_a)
		from_b = most - from_a;
	memcpy(out, a, from_a);
	memcpy(out + from_a, b + skipped, from_b);
	return from_a + from_b;
}
