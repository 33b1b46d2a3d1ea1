/* libFuzzer: any bytes as the indexes of some layers, merged, and traced. Whatever is wrong with them gives an error; of
 * layers that are verified the merge is an index that is verified too, the same one when it is made in two steps, and has
 * as many records as the provenance has visible versions.
 *
 * An input is a number of layers, the bottom one first: two bytes of length, and the index, whose digests are put right. */
#include "index_bytes.h"

#include "index/index_verify.h"
#include "index/merge.h"
#include "index/provenance.h"

#define MOST_LAYERS 8

static const uint8_t key[16] = {1};

struct stack {
	uint8_t *bytes[MOST_LAYERS];
	struct ls_index indexes[MOST_LAYERS];
	const struct ls_index *layers[MOST_LAYERS];
	size_t count;
	int is_good; /* every layer is verified */
};

static void take_layer(struct stack *stack, const uint8_t *data, size_t length)
{
	struct ls_index *index = &stack->indexes[stack->count];
	uint8_t *bytes = copy_of(data, length);

	seal(bytes, length, 1);
	if (ls_index_open(index, bytes, length, NULL)) {
		free(bytes);
		return;
	}
	stack->is_good = stack->is_good && !ls_index_verify(index, NULL);
	stack->bytes[stack->count] = bytes;
	stack->layers[stack->count++] = index;
}

static void take_layers(struct stack *stack, const uint8_t *data, size_t left)
{
	while (left > 2 && stack->count < MOST_LAYERS) {
		size_t length = data[0] | (size_t)data[1] << 8;

		data += 2;
		left -= 2;
		if (length > left)
			length = left;
		take_layer(stack, data, length);
		data += length;
		left -= length;
	}
}

/* Of good layers the merge may refuse a hard link to nothing, and one content of two sizes. */
static void require_reason(const struct stack *stack, const struct ls_error *err)
{
	REQUIRE(err->status == LS_CORRUPT || err->status == LS_INVALID || err->status == LS_LIMIT);
	REQUIRE(!stack->is_good || strstr(err->message, "is a hard link to") || strstr(err->message, "is a chain") ||
	        strstr(err->message, "of another size"));
}

static void merge_in_two_steps(const struct stack *stack, const struct ls_buffer *at_once)
{
	const struct ls_index *layers[MOST_LAYERS];
	struct ls_buffer below = {0}, out = {0};
	struct ls_index chain;
	struct ls_error err;
	size_t half = (stack->count + 1) / 2;

	/* What is wrong with the lower layers alone may be hidden by those above. */
	if (ls_merge(stack->layers, half, key, &below, &err)) {
		require_reason(stack, &err);
		ls_buffer_free(&below);
		return;
	}
	REQUIRE(!ls_index_open(&chain, below.bytes, below.length, NULL));
	layers[0] = &chain;
	for (size_t i = half; i < stack->count; i++)
		layers[i - half + 1] = stack->layers[i];
	REQUIRE(!ls_merge(layers, stack->count - half + 1, key, &out, NULL));
	REQUIRE(out.length == at_once->length && !memcmp(out.bytes, at_once->bytes, out.length));
	ls_buffer_free(&below);
	ls_buffer_free(&out);
}

/* The number of records of the merge, 0 where it fails. */
static size_t merge(const struct stack *stack)
{
	struct ls_buffer out = {0};
	struct ls_index index;
	struct ls_error err;
	size_t count = 0;

	if (ls_merge(stack->layers, stack->count, key, &out, &err)) {
		require_reason(stack, &err);
	} else {
		REQUIRE(!ls_index_open(&index, out.bytes, out.length, NULL));
		if (stack->is_good) {
			REQUIRE(!ls_index_verify(&index, NULL));
			merge_in_two_steps(stack, &out);
		}
		count = index.header->record_count;
	}
	ls_buffer_free(&out);
	return count;
}

static void trace_path(const struct stack *stack, const struct ls_index *index, const struct ls_record *record)
{
	struct ls_buffer versions = {0};
	const char *path = NULL;

	if (ls_index_string(index, record->path, record->path_length, &path, NULL))
		return;
	if (ls_provenance_path(stack->layers, stack->count, path, record->path_length, &versions, NULL))
		REQUIRE(!stack->is_good);
	ls_buffer_free(&versions);
}

static void check_versions(const struct stack *stack, const struct ls_buffer *versions, size_t record_count)
{
	const struct ls_version *version = (const struct ls_version *)versions->bytes;
	size_t count = versions->length / sizeof(*version), visible = 0;

	for (size_t i = 0; i < count; i++) {
		REQUIRE(version[i].layer < stack->count);
		REQUIRE(version[i].record < stack->layers[version[i].layer]->header->record_count);
		visible += version[i].end == LS_VERSION_VISIBLE;
		if (version[i].end == LS_VERSION_VISIBLE)
			continue;
		REQUIRE(version[i].end_layer > version[i].layer && version[i].end_layer < stack->count);
		REQUIRE(version[i].end_record < stack->layers[version[i].end_layer]->header->record_count);
	}
	REQUIRE(!stack->is_good || !record_count || visible == record_count);
}

static void trace(const struct stack *stack, size_t record_count)
{
	struct ls_layer_figures figures[MOST_LAYERS];
	struct ls_buffer versions = {0};
	struct ls_error err;

	if (ls_provenance(stack->layers, stack->count, &versions, figures, &err))
		require_reason(stack, &err);
	else
		check_versions(stack, &versions, record_count);
	ls_buffer_free(&versions);
	if (stack->layers[0]->header->kind != LS_INDEX_LAYER)
		return;
	for (size_t i = 0; i < stack->count; i++)
		for (uint32_t j = 0; j < stack->layers[i]->header->record_count; j++)
			trace_path(stack, stack->layers[i], &stack->layers[i]->records[j]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
	struct stack stack = {.is_good = 1};

	take_layers(&stack, data, length);
	if (stack.count)
		trace(&stack, merge(&stack));
	for (size_t i = 0; i < stack.count; i++)
		free(stack.bytes[i]);
	return 0;
}
