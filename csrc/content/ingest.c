#include "ingest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "index/layer.h"

#define BATCH 2048

/* Where the data of the last entry goes. */
enum target { TARGET_NONE, TARGET_WHOLE, TARGET_STREAM };

struct ls_ingest {
	struct ls_contents *contents;
	struct ls_tar *tar;
	struct ls_layer_builder *builder;
	struct ls_buffer recipe;
	size_t raw_frame;       /* offset of the length of the open RAW frame in `recipe`, 0 when none is open */
	struct ls_buffer table; /* of struct ls_content */
	uint64_t files_bytes;
	uint64_t hole_bytes;
	uint64_t passed_hole_bytes;
	struct ls_ingest_limits limits;

	/* Contents that lie whole in the span, or in `carry`, and wait to be put together. */
	const uint8_t *in[BATCH];
	size_t length[BATCH];
	uint32_t number[BATCH];
	uint8_t digests[BATCH * 32];
	size_t batch;

	/* The content that is arriving. */
	enum target target;
	uint32_t current;         /* its number */
	uint64_t left;            /* stored bytes to come */
	uint64_t position;        /* logical bytes given to the stream */
	struct ls_buffer extents; /* of struct ls_tar_extent, of a sparse one */
	size_t next_extent;
	uint64_t extent_left;
	uint64_t logical_size;
	int is_sparse;
	char sparse_path[256];  /* of a sparse one, for messages */
	struct ls_buffer carry; /* the part of a small content that came in earlier spans */
};

int ls_ingest_new(struct ls_ingest **ingest, struct ls_contents *contents, const struct ls_tar_limits *limits,
                  struct ls_error *err)
{
	struct ls_ingest *in = calloc(1, sizeof(*in));
	int status;

	if (!in)
		return ls_fail(err, LS_NO_MEMORY, "out of memory starting the import of a layer");
	in->contents = contents;
	in->limits = (struct ls_ingest_limits){LS_INGEST_HOLE_BYTES, UINT64_MAX, UINT64_MAX};
	status = ls_tar_new(&in->tar, limits, err);
	if (!status)
		status = ls_layer_builder_new(&in->builder, err);
	if (status) {
		ls_ingest_free(in);
		return status;
	}
	*ingest = in;
	return LS_OK;
}

void ls_ingest_free(struct ls_ingest *in)
{
	if (!in)
		return;
	ls_tar_free(in->tar);
	ls_layer_builder_free(in->builder);
	ls_buffer_free(&in->recipe);
	ls_buffer_free(&in->table);
	ls_buffer_free(&in->extents);
	ls_buffer_free(&in->carry);
	free(in);
}

void ls_ingest_limit(struct ls_ingest *in, const struct ls_ingest_limits *limits)
{
	in->limits = *limits;
}

static struct ls_content *content_at(struct ls_ingest *in, uint32_t number)
{
	return (struct ls_content *)(void *)in->table.bytes + number;
}

static int flush_batch(struct ls_ingest *in, struct ls_error *err)
{
	int status;

	if (!in->batch)
		return LS_OK;
	status = ls_contents_put_many(in->contents, in->in, in->length, in->batch, in->digests, err);
	if (status)
		return status;
	for (size_t i = 0; i < in->batch; i++)
		memcpy(content_at(in, in->number[i])->digest, in->digests + 32 * i, 32);
	in->batch = 0;
	return LS_OK;
}

static int add_to_batch(struct ls_ingest *in, const uint8_t *bytes, size_t length, struct ls_error *err)
{
	in->in[in->batch] = bytes;
	in->length[in->batch] = length;
	in->number[in->batch++] = in->current;
	return in->batch == BATCH ? flush_batch(in, err) : LS_OK;
}

static int recipe_frame(struct ls_ingest *in, uint8_t kind, struct ls_error *err)
{
	in->raw_frame = 0;
	return ls_buffer_append(&in->recipe, &kind, 1, err);
}

static int open_raw_frame(struct ls_ingest *in, struct ls_error *err)
{
	uint32_t length = 0;
	int status = recipe_frame(in, LS_RECIPE_RAW, err);

	in->raw_frame = in->recipe.length;
	return status ? status : ls_buffer_append(&in->recipe, &length, sizeof(length), err);
}

static int recipe_raw(struct ls_ingest *in, struct ls_bytes raw, struct ls_error *err)
{
	while (raw.length) {
		uint32_t length, piece;
		int status = in->raw_frame ? LS_OK : open_raw_frame(in, err);

		if (status)
			return status;
		memcpy(&length, in->recipe.bytes + in->raw_frame, sizeof(length));
		piece = LS_RECIPE_RAW_BYTES - length;
		if (raw.length < piece)
			piece = (uint32_t)raw.length;
		status = ls_buffer_append(&in->recipe, raw.bytes, piece, err);
		if (status)
			return status;
		length += piece;
		memcpy(in->recipe.bytes + in->raw_frame, &length, sizeof(length));
		if (length == LS_RECIPE_RAW_BYTES)
			in->raw_frame = 0;
		raw.bytes += piece;
		raw.length -= piece;
	}
	return LS_OK;
}

static int recipe_sparse(struct ls_ingest *in, const struct ls_tar_entry *entry, struct ls_error *err)
{
	uint32_t count = (uint32_t)entry->extent_count;
	int status = recipe_frame(in, LS_RECIPE_SPARSE, err);

	if (!status)
		status = ls_buffer_append(&in->recipe, &count, sizeof(count), err);
	if (!status)
		status = ls_buffer_append(&in->recipe, entry->extents, count * sizeof(*entry->extents), err);
	return status;
}

static int is_beyond(uint64_t limit, uint64_t used, uint64_t more)
{
	return used > limit || more > limit - used;
}

static int pass_hole(struct ls_ingest *in, uint64_t length, struct ls_error *err)
{
	if (is_beyond(in->limits.passed_hole_bytes, in->passed_hole_bytes, length))
		return ls_fail(err, LS_LIMIT,
		               "the holes of the sparse file \"%s\" bring those of its layer so far to more than the "
		               "%" PRIu64 " bytes that the limit layer_ratio allows for what has come of its blob",
		               in->sparse_path, in->limits.passed_hole_bytes);
	in->passed_hole_bytes += length;
	ls_contents_stream_hole(in->contents, length);
	return LS_OK;
}

static int end_content(struct ls_ingest *in, struct ls_error *err)
{
	int status = LS_OK;

	if (in->target == TARGET_STREAM) {
		if (in->position < in->logical_size)
			status = pass_hole(in, in->logical_size - in->position, err);
		if (!status)
			status = ls_contents_stream_end(in->contents, content_at(in, in->current)->digest, err);
	}
	in->target = TARGET_NONE;
	return status;
}

static int count_holes(struct ls_ingest *in, const struct ls_tar_entry *entry, struct ls_error *err)
{
	uint64_t holes = entry->size - entry->stored_size;

	ls_printable(in->sparse_path, sizeof(in->sparse_path), entry->path.bytes, entry->path.length);
	if (is_beyond(in->limits.hole_bytes, in->hole_bytes, holes))
		return ls_fail(
		    err, LS_LIMIT,
		    "the holes of the sparse file \"%s\" bring those of its layer to more bytes than the limit "
		    "hole_bytes (%" PRIu64 ")",
		    in->sparse_path, in->limits.hole_bytes);
	in->hole_bytes += holes;
	return LS_OK;
}

static int begin_sparse(struct ls_ingest *in, const struct ls_tar_entry *entry, struct ls_error *err)
{
	int status = count_holes(in, entry, err);

	/* The batch came before, and contents are stored in the order of the tar. */
	if (!status)
		status = flush_batch(in, err);
	if (status)
		return status;
	in->extents.length = 0;
	in->next_extent = 0;
	in->extent_left = 0;
	status = recipe_sparse(in, entry, err);
	if (!status)
		status =
		    ls_buffer_append(&in->extents, entry->extents, entry->extent_count * sizeof(*entry->extents), err);
	in->target = TARGET_STREAM;
	if (!status)
		status = ls_contents_stream_begin(in->contents, err);
	return status || in->left ? status : end_content(in, err);
}

static int begin_content(struct ls_ingest *in, const struct ls_tar_entry *entry, struct ls_error *err)
{
	struct ls_content content = {.size = entry->size};
	int status;

	if (in->table.length / sizeof(content) >= LS_INDEX_MAX_RECORDS)
		return ls_fail(err, LS_LIMIT, "a layer has more than %u files with content", LS_INDEX_MAX_RECORDS);
	in->current = (uint32_t)(in->table.length / sizeof(content));
	in->left = entry->stored_size;
	in->logical_size = entry->size;
	in->position = 0;
	in->is_sparse = entry->is_sparse;
	in->carry.length = 0;
	status = ls_buffer_append(&in->table, &content, sizeof(content), err);
	if (status)
		return status;
	if (entry->is_sparse)
		return begin_sparse(in, entry, err);
	in->target = TARGET_WHOLE;
	return recipe_frame(in, LS_RECIPE_CONTENT, err);
}

static int check_index(const struct ls_ingest *in, const struct ls_tar_entry *entry, struct ls_error *err)
{
	if (ls_layer_builder_bytes(in->builder) <= in->limits.index_bytes)
		return LS_OK;
	return ls_fail(err, LS_LIMIT,
	               "the layer's entry \"%s\" (at byte %" PRIu64 " of its tar) brings what its entries take to more "
	               "than the %" PRIu64 " bytes that the limits index_bytes and index_ratio allow",
	               LS_SHOWN(entry->path.bytes, entry->path.length), entry->position, in->limits.index_bytes);
}

static int take_entry(struct ls_ingest *in, const struct ls_tar_entry *entry, struct ls_error *err)
{
	uint32_t content = LS_NONE;
	int status = LS_OK;

	in->files_bytes += entry->size;
	in->target = TARGET_NONE;
	if (entry->type == LS_TAR_REGULAR && entry->size) {
		status = begin_content(in, entry, err);
		content = in->current;
	}
	if (!status)
		status = ls_layer_builder_add(in->builder, entry, content, err);
	return status ? status : check_index(in, entry, err);
}

static int stream_sparse(struct ls_ingest *in, struct ls_bytes data, struct ls_error *err)
{
	const struct ls_tar_extent *extents = (const struct ls_tar_extent *)(const void *)in->extents.bytes;
	int status = LS_OK;

	while (data.length && !status) {
		size_t piece;

		if (!in->extent_left) {
			const struct ls_tar_extent *extent = &extents[in->next_extent++];

			if (extent->offset > in->position)
				status = pass_hole(in, extent->offset - in->position, err);
			in->position = extent->offset;
			in->extent_left = extent->length;
			continue;
		}
		piece = data.length < in->extent_left ? data.length : (size_t)in->extent_left;
		status = ls_contents_stream_data(in->contents, data.bytes, piece, err);
		in->position += piece;
		in->extent_left -= piece;
		data.bytes += piece;
		data.length -= piece;
	}
	return status;
}

/* The first part of a content that does not lie whole in this span: from now on it is gathered (small) or streamed. */
static int gather(struct ls_ingest *in, struct ls_bytes data, struct ls_error *err)
{
	int status;

	if (in->logical_size <= ls_contents_pack_threshold(in->contents))
		return ls_buffer_append(&in->carry, data.bytes, data.length, err);
	in->target = TARGET_STREAM;
	in->position = data.length;
	/* The batch came before, and clones are taken in the order of the tar. */
	status = flush_batch(in, err);
	if (!status)
		status = ls_contents_stream_begin(in->contents, err);
	return status ? status : ls_contents_stream_data(in->contents, data.bytes, data.length, err);
}

static int take_whole(struct ls_ingest *in, struct ls_bytes data, struct ls_error *err)
{
	int status;

	if (data.length == in->logical_size)
		return add_to_batch(in, data.bytes, data.length, err);
	status = gather(in, data, err);
	if (status || in->carry.length != in->logical_size)
		return status;
	/* The carry buffer is used again by the next content that a span's end cuts. */
	status = add_to_batch(in, in->carry.bytes, in->carry.length, err);
	return status ? status : flush_batch(in, err);
}

static int take_data(struct ls_ingest *in, struct ls_bytes data, struct ls_error *err)
{
	int status;

	in->left -= data.length;
	if (in->target == TARGET_WHOLE) {
		status = take_whole(in, data, err);
	} else if (in->is_sparse) {
		status = stream_sparse(in, data, err);
	} else {
		status = ls_contents_stream_data(in->contents, data.bytes, data.length, err);
		in->position += data.length;
	}
	return status || in->left ? status : end_content(in, err);
}

int ls_ingest_feed(struct ls_ingest *in, const uint8_t *bytes, size_t length, struct ls_error *err)
{
	struct ls_tar_event event;
	int status;

	ls_tar_feed(in->tar, bytes, length);
	for (;;) {
		status = ls_tar_next(in->tar, &event, err);
		if (status)
			return status;
		switch (event.kind) {
		case LS_TAR_NEED_MORE:
			return flush_batch(in, err);
		case LS_TAR_RAW:
			status = recipe_raw(in, event.bytes, err);
			break;
		case LS_TAR_ENTRY:
			status = take_entry(in, event.entry, err);
			break;
		case LS_TAR_DATA:
			status = take_data(in, event.bytes, err);
			break;
		}
		if (status)
			return status;
	}
}

int ls_ingest_finish(struct ls_ingest *in, struct ls_error *err)
{
	in->raw_frame = 0;
	return ls_tar_finish(in->tar, err);
}

/* A RAW frame that is open stays: the next span may go on with it. */
int ls_ingest_take_recipe(struct ls_ingest *in, struct ls_buffer *out, struct ls_error *err)
{
	size_t whole = in->raw_frame ? in->raw_frame - 1 : in->recipe.length;
	struct ls_buffer taken = in->recipe;
	int status;

	out->length = 0;
	if (!whole)
		return LS_OK;
	status = ls_buffer_append(out, taken.bytes + whole, taken.length - whole, err);
	if (status)
		return status;
	in->recipe = *out;
	if (in->raw_frame)
		in->raw_frame = 1;
	taken.length = whole;
	*out = taken;
	return LS_OK;
}

int ls_ingest_index(struct ls_ingest *in, const uint8_t hash_key[16], struct ls_buffer *out, struct ls_error *err)
{
	const struct ls_content *table = (const struct ls_content *)(const void *)in->table.bytes;

	return ls_layer_builder_finish(in->builder, hash_key, table, (uint32_t)(in->table.length / sizeof(*table)), out,
	                               err);
}

uint64_t ls_ingest_files_bytes(const struct ls_ingest *in)
{
	return in->files_bytes;
}
