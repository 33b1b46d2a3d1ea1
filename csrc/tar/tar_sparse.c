#include "tar_sparse.h"
#include "tar_header.h"
#include "tar_pax.h"

#include <inttypes.h>
#include <string.h>

/* GNU tar manual, "Basic Tar Format": struct oldgnu_header and struct sparse_header. */
enum {
	OLD_FIRST = 386,
	OLD_FIRST_COUNT = 4,
	OLD_FIRST_MORE = 482,
	OLD_REALSIZE = 483,
	OLD_NEXT_COUNT = 21,
	OLD_NEXT_MORE = 504,
	OLD_NUMBER_BYTES = 12,
};

static int add_extent(struct ls_tar *tar, uint64_t offset, uint64_t length, struct ls_error *err)
{
	struct tar_sparse *sparse = &tar->sparse;
	struct ls_tar_extent *last = sparse->count ? &sparse->extents[sparse->count - 1] : NULL;
	uint64_t end;
	int status;

	if (sparse->seen++ >= tar->limits.sparse_extents)
		return tar_fail(tar, err, LS_LIMIT,
		                "the sparse map has more extents than the limit sparse_extents (%zu)",
		                tar->limits.sparse_extents);
	if (offset < sparse->end || __builtin_add_overflow(offset, length, &end))
		return tar_fail(tar, err, LS_CORRUPT,
		                "extent %zu of the sparse map (%" PRIu64 " bytes at %" PRIu64
		                ") does not follow the one before it, which ends at %" PRIu64,
		                sparse->seen, length, offset, sparse->end);
	if (length && last && last->offset + last->length == offset) {
		last->length += length;
	} else if (length) {
		status = ls_array_reserve(&sparse->extents, &sparse->capacity, sparse->count + 1,
		                          sizeof(*sparse->extents), "extents of a tar entry", err);
		if (status)
			return status;
		sparse->extents[sparse->count++] = (struct ls_tar_extent){offset, length};
	}
	sparse->end = end;
	sparse->stored += length;
	return LS_OK;
}

/* The map is whole and `stored` bytes of content follow. */
static int finish_map(struct ls_tar *tar, uint64_t stored, struct ls_error *err)
{
	if (tar->sparse.end > tar->entry.size)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the sparse map ends at %" PRIu64 ", behind the file's %" PRIu64 " bytes",
		                tar->sparse.end, tar->entry.size);
	if (tar->sparse.stored != stored)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the extents of the sparse map hold %" PRIu64 " bytes, and %" PRIu64 " are stored",
		                tar->sparse.stored, stored);
	tar->entry.stored_size = stored;
	tar_ready(tar);
	return LS_OK;
}

static int set_size(struct ls_tar *tar, uint64_t size, struct ls_error *err)
{
	if (size > tar->limits.file_bytes)
		return tar_fail(tar, err, LS_LIMIT,
		                "the sparse file has %" PRIu64 " bytes, more than the limit file_bytes (%" PRIu64 ")",
		                size, tar->limits.file_bytes);
	tar->entry.size = size;
	return LS_OK;
}

/* Old form: entries up to the first blank one. */
static int read_old_entries(struct ls_tar *tar, const uint8_t *entries, int count, struct ls_error *err)
{
	for (int i = 0; i < count; i++, entries += 2 * OLD_NUMBER_BYTES) {
		uint64_t offset = 0, length = 0;
		int status;

		if (!entries[0] && !entries[OLD_NUMBER_BYTES])
			return LS_OK;
		status = tar_field_unsigned(tar, entries, OLD_NUMBER_BYTES, "sparse offset", &offset, err);
		if (!status)
			status = tar_field_unsigned(tar, entries + OLD_NUMBER_BYTES, OLD_NUMBER_BYTES,
			                            "sparse numbytes", &length, err);
		if (!status)
			status = add_extent(tar, offset, length, err);
		if (status)
			return status;
	}
	return LS_OK;
}

static int begin_old(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	uint64_t size = 0;
	int status = tar_field_unsigned(tar, block + OLD_REALSIZE, OLD_NUMBER_BYTES, "realsize", &size, err);

	if (!status)
		status = set_size(tar, size, err);
	if (!status)
		status = read_old_entries(tar, block + OLD_FIRST, OLD_FIRST_COUNT, err);
	if (status)
		return status;
	if (!block[OLD_FIRST_MORE])
		return finish_map(tar, tar->member_size, err);
	tar->stage = TAR_OLD_SPARSE;
	return LS_OK;
}

int tar_sparse_extension(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	int status = read_old_entries(tar, block, OLD_NEXT_COUNT, err);

	if (status)
		return status;
	return block[OLD_NEXT_MORE] ? LS_OK : finish_map(tar, tar->member_size, err);
}

static int record_number(struct ls_tar *tar, const char *name, const uint8_t *text, size_t length, uint64_t *number,
                         struct ls_error *err)
{
	if (tar_parse_decimal(text, length, number) == TAR_NUMBER_OK)
		return LS_OK;
	return tar_fail(tar, err, LS_CORRUPT, "the pax record %s has \"%s\" where a decimal number of 64 bits belongs",
	                name, LS_SHOWN(text, length));
}

int tar_sparse_offset(struct ls_tar *tar, const uint8_t *text, size_t length, struct ls_error *err)
{
	if (tar->sparse.has_offset)
		return tar_fail(tar, err, LS_CORRUPT,
		                "two pax records GNU.sparse.offset without GNU.sparse.numbytes between them");
	tar->sparse.has_offset = 1;
	return record_number(tar, "GNU.sparse.offset", text, length, &tar->sparse.offset, err);
}

int tar_sparse_numbytes(struct ls_tar *tar, const uint8_t *text, size_t length, struct ls_error *err)
{
	uint64_t number = 0;
	int status;

	if (!tar->sparse.has_offset)
		return tar_fail(tar, err, LS_CORRUPT,
		                "a pax record GNU.sparse.numbytes without GNU.sparse.offset before it");
	tar->sparse.has_offset = 0;
	status = record_number(tar, "GNU.sparse.numbytes", text, length, &number, err);
	return status ? status : add_extent(tar, tar->sparse.offset, number, err);
}

/* Form 0.1: "offset,numbytes,offset,numbytes". */
static int read_map_record(struct ls_tar *tar, struct ls_bytes map, struct ls_error *err)
{
	const uint8_t *at = map.bytes, *end = map.bytes + map.length;
	uint64_t pair[2];
	int numbers = 0;

	if (tar->sparse.seen)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the pax records GNU.sparse.map and GNU.sparse.offset exclude each other");
	for (;;) {
		const uint8_t *comma = memchr(at, ',', (size_t)(end - at));
		int status = record_number(tar, "GNU.sparse.map", at, (size_t)((comma ? comma : end) - at),
		                           &pair[numbers++ & 1], err);

		if (!status && !(numbers & 1))
			status = add_extent(tar, pair[0], pair[1], err);
		if (status)
			return status;
		if (!comma)
			break;
		at = comma + 1;
	}
	if (numbers & 1)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the pax record GNU.sparse.map has an offset without a length at its end");
	return LS_OK;
}

static int begin_records(struct ls_tar *tar, struct ls_error *err)
{
	struct ls_bytes map;
	uint64_t blocks = 0;
	int found, status = LS_OK;

	if (tar_value(tar, TAR_KEY_SPARSE_MAP, &map))
		status = read_map_record(tar, map, err);
	if (!status)
		status = tar_value_unsigned(tar, TAR_KEY_SPARSE_NUMBLOCKS, &found, &blocks, err);
	if (status)
		return status;
	if (tar->sparse.has_offset)
		return tar_fail(tar, err, LS_CORRUPT,
		                "the last pax record GNU.sparse.offset has no GNU.sparse.numbytes");
	if (found && blocks != tar->sparse.seen)
		return tar_fail(tar, err, LS_CORRUPT,
		                "GNU.sparse.numblocks is %" PRIu64 ", and the sparse map has %zu extents", blocks,
		                tar->sparse.seen);
	return finish_map(tar, tar->member_size, err);
}

static int begin_map_blocks(struct ls_tar *tar, struct ls_error *err)
{
	if (tar->sparse.seen || tar->sparse.has_offset)
		return tar_fail(tar, err, LS_CORRUPT, "GNU sparse 1.0 excludes the pax record GNU.sparse.offset");
	tar->sparse.numbers_left = 1;
	tar->left = tar->member_size;
	tar->stage = TAR_SPARSE_MAP;
	if (tar->left < TAR_BLOCK)
		return tar_fail(tar, err, LS_CORRUPT, "%" PRIu64 " bytes cannot hold the sparse map", tar->left);
	return LS_OK;
}

/* The size is in GNU.sparse.size (0.0, 0.1) or GNU.sparse.realsize (1.0); Go's archive/tar takes either, too. */
static int logical_size(struct ls_tar *tar, uint64_t *size, struct ls_error *err)
{
	int found, status = tar_value_unsigned(tar, TAR_KEY_SPARSE_REALSIZE, &found, size, err);

	if (!status && !found)
		status = tar_value_unsigned(tar, TAR_KEY_SPARSE_SIZE, &found, size, err);
	if (!status && !found)
		return tar_fail(tar, err, LS_CORRUPT,
		                "a sparse file needs the pax record GNU.sparse.size or GNU.sparse.realsize");
	return status;
}

int tar_sparse_begin(struct ls_tar *tar, enum tar_sparse_form form, const uint8_t *block, struct ls_error *err)
{
	uint64_t size = 0;
	int status;

	tar->entry.is_sparse = 1;
	if (form == TAR_SPARSE_OLD)
		return begin_old(tar, block, err);
	status = logical_size(tar, &size, err);
	if (!status)
		status = set_size(tar, size, err);
	if (status)
		return status;
	return form == TAR_SPARSE_0 ? begin_records(tar, err) : begin_map_blocks(tar, err);
}

/* One number of the map of form 1.0: their count, then offset and length of each extent in turn. */
static int map_number(struct ls_tar *tar, struct ls_error *err)
{
	struct tar_sparse *sparse = &tar->sparse;
	uint64_t number = sparse->number;

	sparse->number = 0;
	sparse->digits = 0;
	sparse->numbers_left--;
	if (sparse->numbers_read++ == 0) {
		if (number > tar->limits.sparse_extents || number > UINT64_MAX / 2)
			return tar_fail(tar, err, LS_LIMIT,
			                "the sparse map has %" PRIu64
			                " extents, more than the limit sparse_extents (%zu)",
			                number, tar->limits.sparse_extents);
		sparse->numbers_left = 2 * number;
		return LS_OK;
	}
	if (sparse->numbers_left & 1) {
		sparse->offset = number;
		return LS_OK;
	}
	return add_extent(tar, sparse->offset, number, err);
}

static int map_byte(struct ls_tar *tar, uint8_t byte, struct ls_error *err)
{
	struct tar_sparse *sparse = &tar->sparse;

	if (byte == '\n' && sparse->digits)
		return map_number(tar, err);
	if (byte < '0' || byte > '9' || __builtin_mul_overflow(sparse->number, 10, &sparse->number) ||
	    __builtin_add_overflow(sparse->number, (uint64_t)(byte - '0'), &sparse->number))
		return tar_fail(tar, err, LS_CORRUPT,
		                "number %" PRIu64 " of the sparse map is not a decimal number of 64 bits and a newline",
		                sparse->numbers_read + 1);
	sparse->digits++;
	return LS_OK;
}

/* GNU tar manual, "PAX Format, Version 1.0": the map is padded with NULs to a whole block. */
int tar_sparse_map_block(struct ls_tar *tar, const uint8_t *block, struct ls_error *err)
{
	tar->left -= TAR_BLOCK;
	for (size_t i = 0; i < TAR_BLOCK && tar->sparse.numbers_left; i++) {
		int status = map_byte(tar, block[i], err);

		if (status)
			return status;
	}
	if (!tar->sparse.numbers_left)
		return finish_map(tar, tar->left, err);
	if (tar->left < TAR_BLOCK)
		return tar_fail(tar, err, LS_CORRUPT, "the sparse map is longer than the %" PRIu64 " bytes stored",
		                tar->member_size);
	return LS_OK;
}

/* GNU tar manual, "Sparse Formats". 0.0 and 0.1 need not give a version. */
int tar_sparse_form(const struct ls_tar *tar, uint8_t type, enum tar_sparse_form *form, struct ls_error *err)
{
	struct ls_bytes unused;
	uint64_t major = 0, minor = 0;
	int has_major, has_minor, status;

	*form = type == 'S' ? TAR_SPARSE_OLD : TAR_NOT_SPARSE;
	if (type == 'S' && (tar->sparse.seen || tar->sparse.has_offset))
		return tar_fail(tar, err, LS_CORRUPT, "a sparse entry ('S') has pax records of another sparse map");
	if (type == 'S' || (!tar->local.present && !tar->sparse.seen && !tar->sparse.has_offset))
		return LS_OK;
	status = tar_value_unsigned(tar, TAR_KEY_SPARSE_MAJOR, &has_major, &major, err);
	if (!status)
		status = tar_value_unsigned(tar, TAR_KEY_SPARSE_MINOR, &has_minor, &minor, err);
	if (status)
		return status;
	if (has_major && major == 1 && minor == 0)
		*form = TAR_SPARSE_1;
	else if (has_major && (major || minor > 1))
		return tar_fail(tar, err, LS_INVALID,
		                "version %" PRIu64 ".%" PRIu64 " of GNU's sparse format is not known", major, minor);
	else if (has_major || tar->sparse.seen || tar->sparse.has_offset ||
	         tar_value(tar, TAR_KEY_SPARSE_MAP, &unused) || tar_value(tar, TAR_KEY_SPARSE_SIZE, &unused))
		*form = TAR_SPARSE_0;
	return LS_OK;
}
