/* libFuzzer: any bytes as the log of a writable layer. What is found valid is found again, cut off at its end or not, and
 * nothing outside of it is read, also when it changed after it was checked.
 *
 * The first two bytes of an input choose what is changed and up to where data is trusted; the rest is the log. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "extent/log.h"
#include "require.h"

/* How many records there are up to `end`, or SIZE_MAX where one is damaged. */
static size_t read_records(const uint8_t *log, uint64_t end, struct ls_error *err)
{
	uint64_t position = sizeof(struct ls_log_header);
	size_t count = 0;

	while (position < end) {
		struct ls_log_record record;
		uint64_t before = position;
		volatile uint8_t seen = 0;

		if (ls_log_next(log, end, &position, &record, err)) {
			REQUIRE(err->status == LS_CORRUPT);
			return SIZE_MAX;
		}
		REQUIRE(position <= end && position == before + ls_log_record_bytes(record.payload_length));
		for (size_t i = 0; i < record.payload_length; i++)
			seen ^= log[before + sizeof(record) + i];
		(void)seen;
		count++;
	}
	REQUIRE(position == end);
	return count;
}

/* In memory of its own, so that reading past it is seen. */
static uint8_t *copy_of(const uint8_t *bytes, size_t length)
{
	uint8_t *copy = malloc(length ? length : 1);

	REQUIRE(copy);
	memcpy(copy, bytes, length);
	return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	struct ls_log_scan scan, again;
	struct ls_error err = {0};
	uint64_t checked;
	uint8_t *log;
	int status;

	if (length < 2)
		return 0;
	length -= 2;
	log = copy_of(bytes + 2, length);
	checked = bytes[1] * UINT64_C(16);
	status = ls_log_find_end(log, length, checked, &scan, &err);
	if (status) {
		REQUIRE(status == LS_CORRUPT || status == LS_UNSUPPORTED);
		REQUIRE(err.status == status && err.message[0]);
	} else {
		uint8_t *cut = copy_of(log, (size_t)scan.end);

		REQUIRE(scan.end >= sizeof(struct ls_log_header) && scan.end <= length);
		REQUIRE(!scan.reason[0] == (scan.end == length));
		REQUIRE(ls_log_find_end(cut, (size_t)scan.end, checked, &again, &err) == LS_OK);
		REQUIRE(again.end == scan.end && !again.reason[0]);
		REQUIRE(read_records(cut, scan.end, &err) != SIZE_MAX);
		for (size_t i = sizeof(struct ls_log_header) + bytes[0] % 64; i < scan.end; i += 64)
			cut[i] ^= bytes[0];
		read_records(cut, scan.end, &err);
		free(cut);
	}
	free(log);
	return 0;
}

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t length, size_t most);

/* Nothing behind a wrong checksum would be reached: mend those of the header and of records up to one that does not fit. */
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed)
{
	struct ls_log_header header;
	struct ls_log_record record;
	size_t at = 2 + sizeof(header);

	length = LLVMFuzzerMutate(bytes, length, most);
	if (seed % 16 == 0 || length < at)
		return length;
	memcpy(&header, bytes + 2, sizeof(header));
	memcpy(header.magic, LS_LOG_MAGIC, sizeof(header.magic));
	header.version = LS_LOG_VERSION;
	header.reserved = 0;
	memset(header.more_reserved, 0, sizeof(header.more_reserved));
	header.id[0] |= 1;
	if (!header.base_length)
		memset(header.base_id, 0, sizeof(header.base_id));
	ls_log_seal_header(&header);
	memcpy(bytes + 2, &header, sizeof(header));
	while (length - at >= sizeof(record)) {
		size_t left = length - at - sizeof(record);

		memcpy(&record, bytes + at, sizeof(record));
		if (record.payload_length > left)
			record.payload_length = (uint32_t)(left < 64 ? 0 : seed % 64);
		record.type = record.type % 12;
		if (seed % 4)
			record.mtime_nanoseconds = 0;
		ls_log_seal(&record, bytes + at + sizeof(record), header.id, at - 2);
		memcpy(bytes + at, &record, sizeof(record));
		if (ls_log_record_bytes(record.payload_length) > length - at)
			break;
		at += ls_log_record_bytes(record.payload_length);
	}
	return length;
}
