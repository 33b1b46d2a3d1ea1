#include "tar.h"
#include "tar_header.h"
#include "tar_impl.h"
#include "tar_pax.h"
#include "tar_sparse.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct ls_tar_limits ls_tar_default_limits = {
    .path_bytes = 4096,
    .name_bytes = 255,
    .extended_bytes = 1 << 20,
    .sparse_extents = 1 << 16,
    .file_bytes = UINT64_C(1) << 40,
    .entries = UINT64_C(1) << 24,
};

int tar_fail(const struct ls_tar *tar, struct ls_error *err, int status, const char *format, ...)
{
	char detail[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(detail, sizeof(detail), format, arguments);
	va_end(arguments);
	if (!tar->entry.path.bytes)
		return ls_fail(err, status, "tar header at byte %" PRIu64 ": %s", tar->header_position, detail);
	return ls_fail(err, status, "tar header at byte %" PRIu64 " (\"%s\"): %s", tar->header_position,
	               LS_SHOWN(tar->entry.path.bytes, tar->entry.path.length), detail);
}

int ls_tar_new(struct ls_tar **tar, const struct ls_tar_limits *limits, struct ls_error *err)
{
	*tar = calloc(1, sizeof(**tar));
	if (!*tar)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for a tar walk");
	(*tar)->limits = *limits;
	return LS_OK;
}

void ls_tar_free(struct ls_tar *tar)
{
	if (!tar)
		return;
	ls_buffer_free(&tar->local.bytes);
	ls_buffer_free(&tar->global.bytes);
	free(tar->xattr_ranges);
	free(tar->xattrs);
	free(tar->sparse.extents);
	free(tar);
}

void ls_tar_feed(struct ls_tar *tar, const void *bytes, size_t length)
{
	tar->at = bytes;
	tar->end = tar->at + length;
}

/* Pass over at most `most` bytes of the span; returns how many. */
static size_t advance(struct ls_tar *tar, uint64_t most)
{
	size_t here = (size_t)(tar->end - tar->at);
	size_t n = most < here ? (size_t)most : here;

	tar->at += n;
	tar->position += n;
	return n;
}

/* The next block, in the span when it lies there whole. NULL when the span ends before the block does. */
static const uint8_t *take_block(struct ls_tar *tar)
{
	const uint8_t *from = tar->at;
	size_t n = advance(tar, TAR_BLOCK - tar->gathered);

	if (n == TAR_BLOCK)
		return from;
	memcpy(tar->block + tar->gathered, from, n);
	tar->gathered += n;
	if (tar->gathered < TAR_BLOCK)
		return NULL;
	tar->gathered = 0;
	return tar->block;
}

static int step_block(struct ls_tar *tar, struct ls_error *err)
{
	const uint8_t *block = take_block(tar);

	if (!block)
		return LS_OK;
	if (tar->stage == TAR_OLD_SPARSE)
		return tar_sparse_extension(tar, block, err);
	if (tar->stage == TAR_SPARSE_MAP)
		return tar_sparse_map_block(tar, block, err);
	tar->header_position = tar->position - TAR_BLOCK;
	return tar_read_header(tar, block, err);
}

/* Pass over RAW bytes of the present stage. */
static int step(struct ls_tar *tar, struct ls_error *err)
{
	switch (tar->stage) {
	case TAR_EXTENDED:
		return tar_extended_step(tar, err);
	case TAR_SKIP:
		tar->left -= advance(tar, tar->left);
		if (!tar->left)
			tar->stage = TAR_HEADER;
		return LS_OK;
	case TAR_END:
		advance(tar, UINT64_MAX);
		return LS_OK;
	default:
		return step_block(tar, err);
	}
}

void tar_ready(struct ls_tar *tar)
{
	tar->entry.xattrs = tar->xattrs;
	tar->entry.extents = tar->sparse.extents;
	tar->entry.extent_count = tar->sparse.count;
	tar->left = tar->entry.stored_size;
	tar->padding = -tar->left & (TAR_BLOCK - 1);
	tar->stage = TAR_READY;
}

static void hand_out_entry(struct ls_tar *tar, struct ls_tar_event *event)
{
	event->kind = LS_TAR_ENTRY;
	event->entry = &tar->entry;
	tar->pending = 0;
	tar->stage = tar->left ? TAR_DATA : TAR_HEADER;
}

static void hand_out_data(struct ls_tar *tar, struct ls_tar_event *event)
{
	event->kind = LS_TAR_DATA;
	event->bytes.bytes = tar->at;
	event->bytes.length = advance(tar, tar->left);
	tar->left -= event->bytes.length;
	if (!tar->left) {
		tar->left = tar->padding;
		tar->stage = tar->left ? TAR_SKIP : TAR_HEADER;
	}
}

int ls_tar_next(struct ls_tar *tar, struct ls_tar_event *event, struct ls_error *err)
{
	const uint8_t *raw = tar->at;

	*event = (struct ls_tar_event){.kind = LS_TAR_NEED_MORE};
	while (tar->at < tar->end && tar->stage != TAR_READY && tar->stage != TAR_DATA) {
		int status = step(tar, err);

		if (status)
			return status;
	}
	if (tar->at != raw) {
		event->kind = LS_TAR_RAW;
		event->bytes = (struct ls_bytes){raw, (size_t)(tar->at - raw)};
	} else if (tar->stage == TAR_READY) {
		hand_out_entry(tar, event);
	} else if (tar->at < tar->end) {
		hand_out_data(tar, event);
	}
	return LS_OK;
}

int ls_tar_finish(struct ls_tar *tar, struct ls_error *err)
{
	static const char advice[] = "it was cut short: fetch or write it again";

	if (tar->stage == TAR_DATA)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the archive ends %" PRIu64 " bytes before the end of this content; %s", tar->left,
		                advice);
	/* The header that is cut short is the next one, and the last entry has nothing to do with it. */
	if (tar->gathered && tar->stage == TAR_HEADER) {
		tar->header_position = tar->position - tar->gathered;
		tar->entry.path.bytes = NULL;
	}
	if (tar->gathered || tar->stage == TAR_EXTENDED)
		return tar_fail(tar, err, LS_CORRUPT, "the archive ends at byte %" PRIu64 ", inside a header; %s",
		                tar->position, advice);
	if (tar->pending)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the archive ends before the entry that this header belongs to; %s", advice);
	return LS_OK;
}
