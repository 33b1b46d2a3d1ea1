/* libFuzzer: any bytes as a tar, walked, built into a layer's index, and the index verified.
 *
 * Header checksums are put right first, so that mutations get past them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "index/index_verify.h"
#include "index/layer.h"

static void put_checksums_right(uint8_t *bytes, size_t length)
{
	for (size_t at = 0; at + 512 <= length; at += 512) {
		uint8_t *header = bytes + at;
		unsigned sum = 0;
		char text[8];

		if (memcmp(header + 257, "ustar", 5))
			continue;
		memset(header + 148, ' ', 8);
		for (int i = 0; i < 512; i++)
			sum += header[i];
		snprintf(text, sizeof(text), "%06o", sum);
		memcpy(header + 148, text, 7);
	}
}

struct run {
	struct ls_layer_builder *builder;
	struct ls_buffer contents;
};

static int add(struct run *run, const struct ls_tar_entry *entry, struct ls_error *err)
{
	uint32_t number = LS_NONE;

	if (entry->type == LS_TAR_REGULAR && entry->size) {
		struct ls_content content = {.size = entry->size};

		number = (uint32_t)(run->contents.length / sizeof(content));
		memcpy(content.digest, &number, sizeof(number));
		if (ls_buffer_append(&run->contents, &content, sizeof(content), err))
			abort();
	}
	return ls_layer_builder_add(run->builder, entry, number, err);
}

static int walk(struct run *run, const uint8_t *bytes, size_t length, struct ls_error *err)
{
	struct ls_tar *tar;
	struct ls_tar_event event;
	int status;

	if (ls_tar_new(&tar, &ls_tar_default_limits, err))
		abort();
	ls_tar_feed(tar, bytes, length);
	while (!(status = ls_tar_next(tar, &event, err)) && event.kind != LS_TAR_NEED_MORE)
		if (event.kind == LS_TAR_ENTRY && (status = add(run, event.entry, err)))
			break;
	ls_tar_free(tar);
	return status;
}

static void finish(struct run *run)
{
	static const uint8_t key[16];
	struct ls_buffer out = {0};
	struct ls_index index;
	struct ls_error err;

	if (ls_layer_builder_finish(run->builder, key, (const struct ls_content *)run->contents.bytes,
	                            (uint32_t)(run->contents.length / sizeof(struct ls_content)), &out, &err) ||
	    ls_index_open(&index, out.bytes, out.length, &err) || ls_index_verify(&index, &err)) {
		fprintf(stderr, "what was accepted did not become a valid index: %s\n", err.message);
		abort();
	}
	ls_buffer_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
	struct run run = {0};
	struct ls_error err;
	uint8_t *bytes = malloc(length ? length : 1);

	if (!bytes)
		abort();
	memcpy(bytes, data, length);
	put_checksums_right(bytes, length);
	if (ls_layer_builder_new(&run.builder, &err))
		abort();
	if (!walk(&run, bytes, length, &err))
		finish(&run);
	ls_layer_builder_free(run.builder);
	ls_buffer_free(&run.contents);
	free(bytes);
	return 0;
}
