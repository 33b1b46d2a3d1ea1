/* libFuzzer harness of the tar walk: any bytes, cut into spans in any way, give events that keep the promises of tar.h
 * or an error, and the same ones however they are cut.
 *
 *     clang -g -O1 -std=gnu11 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Icsrc \
 *           tests/fuzz/fuzz_tar.c csrc/tar.c csrc/tar_*.c csrc/status.c csrc/buffer.c -o fuzz_tar
 *     ./fuzz_tar -max_len=16384 CORPUS
 *
 * The first byte of an input chooses the spans, the rest is the archive. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "require.h"
#include "tar.h"

#define BLOCK 512

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

static void mix_text(struct trace *trace, struct ls_tar_bytes text)
{
	mix_number(trace, text.length);
	mix(trace, text.bytes, text.length);
}

static void check_name(struct ls_tar_bytes name)
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
		const struct ls_tar_xattr *xattr = &entry->xattrs[i];

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

/* Each span in memory of its own, so that reading past it, or after it, is seen. */
static void walk(const uint8_t *bytes, size_t length, size_t span, struct trace *trace)
{
	struct ls_tar *tar;
	struct ls_error err = {0};

	REQUIRE(ls_tar_new(&tar, &limits, &err) == LS_OK);
	while (length && !trace->status) {
		size_t n = span < length ? span : length;
		uint8_t *copy = malloc(n);

		REQUIRE(copy);
		memcpy(copy, bytes, n);
		trace->status = walk_span(tar, copy, n, trace, &err);
		free(copy);
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

/* Most mutations break a checksum, and nothing behind it would be reached: mend those of what looks like a header. */
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed)
{
	length = LLVMFuzzerMutate(bytes, length, most);
	if (seed % 16 == 0)
		return length;
	for (size_t at = 1; at + BLOCK <= length; at += BLOCK) {
		uint8_t *block = bytes + at;
		unsigned sum = 8 * ' ';
		char digits[8];

		if (memcmp(block + 257, "ustar", 5) != 0)
			continue;
		for (size_t i = 0; i < BLOCK; i++)
			sum += i - 148 < 8 ? 0 : block[i];
		snprintf(digits, sizeof(digits), "%06o", sum);
		memcpy(block + 148, digits, sizeof(digits));
	}
	return length;
}
