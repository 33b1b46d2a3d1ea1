/* libFuzzer: two chains made of the input are compared, and the answer with what they were made of; then bytes of them
 * are overwritten under right digests and they are compared again, which must end, in an error or not.
 *
 * An input is a list of nodes, OP_BYTES each, that ends with one whose kind is END; then come patches, PATCH_BYTES
 * each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hash/blake3.h"
#include "index/compare.h"
#include "index/index_verify.h"
#include "index/index_writer.h"
#include "require.h"

#define MAX_NODES 60
#define OP_BYTES 4
#define PATCH_BYTES 4
#define CONTENTS 4

enum { A, B, SIDES };
enum kind { DIRECTORY, REGULAR, SYMLINK, DEVICE, FIFO, KINDS, END = 255 };

/* A path in one of the chains. */
struct description {
	int there;
	enum kind kind;
	uint8_t attributes;
};

struct run {
	uint32_t count; /* nodes, the root included */
	uint32_t parents[MAX_NODES];
	char names[MAX_NODES][8];
	struct description nodes[SIDES][MAX_NODES];
	struct ls_buffer bytes[SIDES];
};

static const char targets[] = "abcd";
static const uint8_t xattrs[2][10] = {{1, 0, 1, 0, 1, 0, 0, 0, 'x', '0'}, {1, 0, 1, 0, 1, 0, 0, 0, 'x', '1'}};

/* The first byte: the parent; the second: the name's first letter, and the sides; the third: what it is in a; the
 * fourth: how it differs in b. The number in a name makes it differ from all others. */
static void add_node(struct run *run, const uint8_t *op)
{
	uint32_t number = run->count++;

	run->parents[number] = op[0] % number;
	snprintf(run->names[number], sizeof(run->names[number]), "%c%u", "ab-.~"[op[1] % 5], number);
	for (int side = A; side < SIDES; side++) {
		uint8_t what = side == A ? op[2] : op[2] ^ op[3];
		const struct description *parent = &run->nodes[side][op[0] % number];

		run->nodes[side][number] = (struct description){
		    .there = op[1] >> (6 + side) & 1 && parent->there && parent->kind == DIRECTORY,
		    .kind = what % KINDS,
		    .attributes = what / KINDS,
		};
	}
}

static size_t read_nodes(struct run *run, const uint8_t *data, size_t length)
{
	size_t at = 0;

	run->count = 1;
	run->nodes[A][0] = run->nodes[B][0] = (struct description){.there = 1};
	while (at + OP_BYTES <= length && run->count < MAX_NODES && data[at] != END) {
		add_node(run, data + at);
		at += OP_BYTES;
	}
	return at + OP_BYTES < length ? at + OP_BYTES : length;
}

static void describe(struct ls_index_node *node, const struct description *description)
{
	static const uint32_t modes[KINDS] = {S_IFDIR | 0755, S_IFREG | 0644, S_IFLNK | 0777, S_IFCHR, S_IFIFO};
	unsigned attributes = description->attributes;

	node->record.mode = modes[description->kind];
	node->record.data = LS_NONE;
	if (description->kind == REGULAR && attributes % 5 < CONTENTS) {
		node->record.size = 9;
		node->record.data = attributes % 5;
	} else if (description->kind == SYMLINK) {
		node->record.size = 1;
		node->target = targets + attributes % 4;
	} else if (description->kind == DEVICE) {
		node->record.size = attributes % 4;
	}
	/* What one of the fields above does not tell apart, the time does. */
	node->record.mtime_seconds = attributes / 4;
	node->record.uid = attributes % 5;
	node->record.gid = attributes % 4;
	if (attributes & 1) {
		node->xattrs = xattrs[attributes >> 1 & 1];
		node->xattrs_length = sizeof(xattrs[0]);
	}
}

static void write_chain(struct run *run, int side)
{
	static const uint8_t keys[SIDES][16] = {{1}, {2}};
	static const struct ls_content contents[CONTENTS] = {{{0}, 9}, {{1}, 9}, {{2}, 9}, {{3}, 9}};
	struct ls_index_node nodes[MAX_NODES];
	struct ls_error err;

	memset(nodes, 0, sizeof(nodes));
	for (uint32_t i = 0; i < run->count; i++) {
		nodes[i].parent = run->nodes[side][i].there ? run->parents[i] : LS_NONE;
		nodes[i].inode = i;
		nodes[i].name = run->names[i];
		nodes[i].name_length = (uint16_t)strlen(run->names[i]);
		nodes[i].record.layer = (uint16_t)side;
		describe(&nodes[i], &run->nodes[side][i]);
	}
	REQUIRE(!ls_index_write(LS_INDEX_CHAIN, 2, keys[side], nodes, run->count, contents, CONTENTS, &run->bytes[side],
	                        &err));
}

static uint32_t expected_kind(const struct run *run, uint32_t node)
{
	const struct description *a = &run->nodes[A][node], *b = &run->nodes[B][node];

	if (!a->there || !b->there)
		return a->there ? LS_DELETED : b->there ? LS_ADDED : 0;
	return a->kind == b->kind && a->attributes == b->attributes ? 0 : LS_CHANGED;
}

static uint32_t node_of(const struct ls_index *index, uint32_t record)
{
	char text[8] = {0};
	const char *name;
	size_t length;

	REQUIRE(!ls_index_name(index, &index->records[record], &name, &length, NULL) && length < sizeof(text));
	memcpy(text, name, length);
	return length ? (uint32_t)strtoul(text + 1, NULL, 10) : 0;
}

/* Every path that differs once, and no other. */
static void check_changes(const struct run *run, const struct ls_index indexes[SIDES], const struct ls_buffer *found)
{
	const struct ls_change *changes = (const struct ls_change *)found->bytes;
	size_t count = found->length / sizeof(*changes), expected = 0;
	uint8_t seen[MAX_NODES] = {0};

	for (uint32_t i = 0; i < run->count; i++)
		expected += expected_kind(run, i) != 0;
	REQUIRE(count == expected);
	for (size_t i = 0; i < count; i++) {
		int side = changes[i].kind == LS_DELETED ? A : B;
		uint32_t node = node_of(&indexes[side], side == A ? changes[i].a : changes[i].b);

		REQUIRE(changes[i].kind == expected_kind(run, node));
		REQUIRE(!seen[node]++);
	}
}

static void patch(struct run *run, const uint8_t *op)
{
	struct ls_buffer *bytes = &run->bytes[op[0] & 1];
	size_t at = ((size_t)op[0] << 15 | (size_t)op[1] << 8 | op[2]) % bytes->length;

	bytes->bytes[at] = op[3];
}

/* The digests that damage would show in are put right. */
static void seal(struct ls_buffer *bytes)
{
	struct ls_index_header *header = (struct ls_index_header *)bytes->bytes;
	uint8_t digest[32];

	REQUIRE(!ls_b3_hash(header + 1, bytes->length - sizeof(*header), header->body_digest, NULL));
	REQUIRE(!ls_b3_hash(header, offsetof(struct ls_index_header, header_digest), digest, NULL));
	memcpy(header->header_digest, digest, sizeof(header->header_digest));
}

static void compare_damaged(struct run *run)
{
	struct ls_index indexes[SIDES];
	struct ls_buffer changes = {0};
	struct ls_error err;
	uint64_t read;
	int sound, status;

	seal(&run->bytes[A]);
	seal(&run->bytes[B]);
	if (ls_index_open(&indexes[A], run->bytes[A].bytes, run->bytes[A].length, &err) ||
	    ls_index_open(&indexes[B], run->bytes[B].bytes, run->bytes[B].length, &err))
		return;
	status = ls_index_compare(&indexes[A], &indexes[B], &changes, &read, &err);
	sound = !ls_index_verify(&indexes[A], &err) && !ls_index_verify(&indexes[B], &err);
	REQUIRE(!status || status == LS_CORRUPT || status == LS_INVALID);
	REQUIRE(!sound || !status || status == LS_INVALID);
	REQUIRE(read <= (uint64_t)indexes[A].header->record_count + indexes[B].header->record_count);
	ls_buffer_free(&changes);
}

static void compare_sound(struct run *run)
{
	struct ls_index indexes[SIDES];
	struct ls_buffer changes = {0};
	struct ls_error err;
	uint64_t read;

	for (int side = A; side < SIDES; side++) {
		REQUIRE(!ls_index_open(&indexes[side], run->bytes[side].bytes, run->bytes[side].length, &err));
		REQUIRE(!ls_index_verify(&indexes[side], &err));
	}
	REQUIRE(!ls_index_compare(&indexes[A], &indexes[B], &changes, &read, &err));
	check_changes(run, indexes, &changes);
	ls_buffer_free(&changes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
	struct run run = {0};
	size_t at = read_nodes(&run, data, length);

	write_chain(&run, A);
	write_chain(&run, B);
	compare_sound(&run);
	for (; at + PATCH_BYTES <= length; at += PATCH_BYTES)
		patch(&run, data + at);
	compare_damaged(&run);
	ls_buffer_free(&run.bytes[A]);
	ls_buffer_free(&run.bytes[B]);
	return 0;
}
