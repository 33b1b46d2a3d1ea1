#include "contents.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h> /* renameat */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/files.h"

#define VECTORS 1024
#define STREAM_NAME "stream"
#define ZERO_BYTES (1 << 16)

static const uint8_t zeros[ZERO_BYTES];

struct ls_contents {
	int staging;
	int pack;
	const struct ls_digests *known;
	const struct ls_b3_kernel *kernel;
	size_t pack_threshold;

	struct ls_buffer records;  /* of struct ls_digest_record: what is new */
	struct ls_digests pending; /* table over `records` */
	struct ls_buffer slots;    /* of struct ls_pack_slot */
	uint64_t pack_bytes;       /* written or in `vectors` */
	uint64_t pack_written;
	struct iovec vectors[VECTORS];
	int vector_count;

	int stream; /* descriptor, -1 when none is open */
	uint64_t stream_bytes;
	int stream_is_clone; /* it holds its bytes already */
	struct ls_b3_hasher hasher;

	int expects_clones;
	uint64_t large_count; /* contents so far that are too large for the pack */

	struct ls_contents_counts counts;
};

int ls_contents_new(struct ls_contents **contents, int staging, int pack, const struct ls_digests *digests,
                    size_t pack_threshold, const struct ls_b3_kernel *kernel, struct ls_error *err)
{
	struct ls_contents *c = calloc(1, sizeof(*c));
	int status;

	if (!c)
		return ls_fail(err, LS_NO_MEMORY, "out of memory starting an import");
	c->staging = staging;
	c->pack = pack;
	c->known = digests;
	c->kernel = kernel;
	c->pack_threshold = pack_threshold;
	c->stream = -1;
	status = ls_digests_init(&c->pending, err);
	if (status) {
		free(c);
		return status;
	}
	*contents = c;
	return LS_OK;
}

static void drop_stream(struct ls_contents *c)
{
	if (c->stream < 0)
		return;
	close(c->stream);
	c->stream = -1;
	unlinkat(c->staging, STREAM_NAME, 0);
}

void ls_contents_free(struct ls_contents *c)
{
	if (!c)
		return;
	/* It keeps its name: `staging` may be another directory by now. */
	if (c->stream >= 0)
		close(c->stream);
	ls_buffer_free(&c->records);
	ls_buffer_free(&c->slots);
	ls_digests_free(&c->pending);
	free(c);
}

size_t ls_contents_pack_threshold(const struct ls_contents *c)
{
	return c->pack_threshold;
}

static int is_known(struct ls_contents *c, const uint8_t *digest, uint64_t size)
{
	if (ls_digests_find(c->known, digest) == UINT32_MAX && ls_digests_find(&c->pending, digest) == UINT32_MAX)
		return 0;
	c->counts.known_count++;
	c->counts.known_bytes += size;
	return 1;
}

static int add_record(struct ls_contents *c, const uint8_t *digest, uint64_t size, struct ls_location location,
                      struct ls_error *err)
{
	struct ls_digest_record record = {.size = size, .location = location};
	int status;

	memcpy(record.digest, digest, sizeof(record.digest));
	status = ls_buffer_append(&c->records, &record, sizeof(record), err);
	if (status)
		return status;
	c->counts.new_count++;
	c->counts.new_bytes += size;
	return ls_digests_extend(&c->pending, (const struct ls_digest_record *)(const void *)c->records.bytes,
	                         c->records.length / sizeof(record), err);
}

/* Have the kernel begin to write a range back, so that the sync at the end of the import finds little left to do. Only
 * a hint: where it fails, that sync does the work. */
static void begin_writeback(int fd, uint64_t offset, uint64_t length)
{
	sync_file_range(fd, (off_t)offset, (off_t)length, SYNC_FILE_RANGE_WRITE);
}

static int flush_pack(struct ls_contents *c, struct ls_error *err)
{
	uint64_t from = c->pack_written;

	if (ls_write_vectors(c->pack, c->vectors, &c->vector_count, &c->pack_written))
		return ls_fail_errno(err, "cannot write to the pack at byte %llu; free space and try again",
		                     (unsigned long long)c->pack_written);
	/* A length of 0 would mean everything up to the end of the file. */
	if (c->pack_written > from)
		begin_writeback(c->pack, from, c->pack_written - from);
	return LS_OK;
}

static void add_vector(struct ls_contents *c, const void *bytes, size_t length)
{
	c->vectors[c->vector_count++] = (struct iovec){(void *)(uintptr_t)bytes, length};
	c->pack_bytes += length;
}

static int put_packed(struct ls_contents *c, const uint8_t *bytes, size_t length, const uint8_t *digest,
                      struct ls_error *err)
{
	struct ls_pack_slot slot = {.offset = c->pack_bytes, .size = length};
	struct ls_location location = {0, (uint32_t)(c->slots.length / sizeof(slot))};
	size_t padding = -length % LS_PACK_BLOCK_BYTES;
	int status = LS_OK;

	memcpy(slot.digest, digest, sizeof(slot.digest));
	if (c->vector_count > VECTORS - 2)
		status = flush_pack(c, err);
	if (!status)
		status = ls_buffer_append(&c->slots, &slot, sizeof(slot), err);
	if (!status)
		status = add_record(c, digest, length, location, err);
	if (status)
		return status;
	add_vector(c, bytes, length);
	if (padding)
		add_vector(c, zeros, padding);
	return LS_OK;
}

static void object_name(char name[65], const uint8_t *digest)
{
	*ls_hex(name, digest, 32) = '\0';
}

static int write_object(int fd, uint64_t at, const uint8_t *bytes, size_t length, struct ls_error *err)
{
	if (ls_write_at(fd, bytes, length, at))
		return ls_fail_errno(err, "cannot write an object of the store; free space and try again");
	return LS_OK;
}

static int create_object(struct ls_contents *c, const char *name, int *fd, struct ls_error *err)
{
	*fd = openat(c->staging, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
	if (*fd < 0)
		return ls_fail_errno(err, "cannot create object %s in the import's staging directory", name);
	return LS_OK;
}

static int close_object(int fd, int status, struct ls_error *err)
{
	if (close(fd) && !status)
		return ls_fail_errno(err, "cannot finish writing an object of the store");
	return status;
}

#define CLONE_NAME_BYTES 32

static void clone_name(const struct ls_contents *c, char name[CLONE_NAME_BYTES])
{
	snprintf(name, CLONE_NAME_BYTES, LS_CONTENTS_CLONE_NAME "%" PRIu64, c->large_count);
}

static int check_clone(int fd, uint64_t size, struct ls_error *err)
{
	struct stat status;

	if (fstat(fd, &status))
		return ls_fail_errno(err, "cannot look at a cloned content in the import's staging directory");
	if ((uint64_t)status.st_size != size)
		return ls_fail(err, LS_CORRUPT, "a cloned content has %lld bytes, and %" PRIu64 " were read of it",
		               (long long)status.st_size, size);
	return LS_OK;
}

/* Give the next content's clone that name, or remove it where `name` is NULL; *taken says whether there was one. */
static int take_clone(struct ls_contents *c, const char *name, int *taken, struct ls_error *err)
{
	char clone[CLONE_NAME_BYTES];

	*taken = 0;
	if (!c->expects_clones)
		return LS_OK;
	clone_name(c, clone);
	if (name ? renameat(c->staging, clone, c->staging, name) : unlinkat(c->staging, clone, 0)) {
		if (errno == ENOENT)
			return LS_OK;
		return ls_fail_errno(err, "cannot take %s from the import's staging directory", clone);
	}
	*taken = 1;
	return LS_OK;
}

static const struct ls_location object_location = {LS_LOCATION_OBJECT, 0};

static int put_object(struct ls_contents *c, const uint8_t *bytes, size_t length, const uint8_t *digest,
                      struct ls_error *err)
{
	char name[65];
	int fd, taken, status;

	object_name(name, digest);
	status = take_clone(c, name, &taken, err);
	if (status)
		return status;
	if (taken) {
		fd = openat(c->staging, name, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return ls_fail_errno(err, "cannot open object %s in the import's staging directory", name);
		status = check_clone(fd, length, err);
	} else {
		status = create_object(c, name, &fd, err);
		if (status)
			return status;
		status = write_object(fd, 0, bytes, length, err);
		begin_writeback(fd, 0, length);
	}
	status = close_object(fd, status, err);
	return status ? status : add_record(c, digest, length, object_location, err);
}

void ls_contents_expect_clones(struct ls_contents *c, int expected)
{
	c->expects_clones = expected;
	c->large_count = 0;
}

/* A content that is stored already needs no clone of its own. */
static int pass_over(struct ls_contents *c, size_t length, struct ls_error *err)
{
	int taken;

	return length > c->pack_threshold ? take_clone(c, NULL, &taken, err) : LS_OK;
}

int ls_contents_put_many(struct ls_contents *c, const uint8_t *const *in, const size_t *length, size_t n, uint8_t *out,
                         struct ls_error *err)
{
	int status = ls_b3_hash_many(c->kernel, in, length, n, out, err);

	for (size_t i = 0; i < n && !status; i++) {
		const uint8_t *digest = out + 32 * i;

		if (is_known(c, digest, length[i]))
			status = pass_over(c, length[i], err);
		else if (length[i] <= c->pack_threshold)
			status = put_packed(c, in[i], length[i], digest, err);
		else
			status = put_object(c, in[i], length[i], digest, err);
		c->large_count += length[i] > c->pack_threshold;
	}
	/* The vectors point into the caller's memory. */
	return status ? status : flush_pack(c, err);
}

int ls_contents_stream_begin(struct ls_contents *c, struct ls_error *err)
{
	int status;

	/* Of a layer that was given up inside a content. */
	drop_stream(c);
	c->stream_bytes = 0;
	ls_b3_hasher_init(&c->hasher, c->kernel);
	status = take_clone(c, STREAM_NAME, &c->stream_is_clone, err);
	if (status)
		return status;
	if (!c->stream_is_clone)
		return create_object(c, STREAM_NAME, &c->stream, err);
	c->stream = openat(c->staging, STREAM_NAME, O_RDONLY | O_CLOEXEC);
	if (c->stream < 0)
		return ls_fail_errno(err, "cannot open a cloned content in the import's staging directory");
	return LS_OK;
}

int ls_contents_stream_data(struct ls_contents *c, const uint8_t *bytes, size_t length, struct ls_error *err)
{
	uint64_t at = c->stream_bytes;

	ls_b3_hasher_update(&c->hasher, bytes, length);
	c->stream_bytes += length;
	return c->stream_is_clone ? LS_OK : write_object(c->stream, at, bytes, length, err);
}

void ls_contents_stream_hole(struct ls_contents *c, uint64_t length)
{
	c->stream_bytes += length;
	while (length) {
		size_t piece = length < ZERO_BYTES ? (size_t)length : ZERO_BYTES;

		ls_b3_hasher_update(&c->hasher, zeros, piece);
		length -= piece;
	}
}

static int read_back(int fd, uint8_t *bytes, size_t length, struct ls_error *err)
{
	ssize_t done = ls_read_at(fd, bytes, length, 0);

	if (done < 0)
		return ls_fail_errno(err, "cannot read back a content of %zu bytes", length);
	if ((size_t)done < length)
		return ls_fail(err, LS_CORRUPT,
		               "a content of %zu bytes ends at byte %zd in the import's staging directory; leave that "
		               "directory alone and import again",
		               length, done);
	return LS_OK;
}

/* Read the whole stream back (it is small) and put it as any other content. */
static int stream_to_pack(struct ls_contents *c, uint8_t digest[32], struct ls_error *err)
{
	size_t length = (size_t)c->stream_bytes;
	uint8_t *bytes = malloc(length);
	const uint8_t *in = bytes;
	int status;

	if (!bytes)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for a content of %zu bytes", length);
	status = read_back(c->stream, bytes, length, err);
	if (!status)
		status = ls_contents_put_many(c, &in, &length, 1, digest, err);
	free(bytes);
	return status;
}

int ls_contents_stream_end(struct ls_contents *c, uint8_t digest[32], struct ls_error *err)
{
	char name[65];
	int fd = c->stream, status = LS_OK;

	if (c->stream_is_clone)
		status = check_clone(fd, c->stream_bytes, err);
	else if (ftruncate(fd, (off_t)c->stream_bytes))
		status = ls_fail_errno(err, "cannot set an object's size to %llu bytes",
		                       (unsigned long long)c->stream_bytes);
	if (status)
		return status;
	if (c->stream_bytes <= c->pack_threshold) {
		status = stream_to_pack(c, digest, err);
		drop_stream(c);
		return status;
	}
	c->large_count++;
	ls_b3_hasher_final(&c->hasher, digest);
	if (is_known(c, digest, c->stream_bytes)) {
		drop_stream(c);
		return LS_OK;
	}
	c->stream = -1;
	status = close_object(fd, LS_OK, err);
	if (status)
		return status;
	object_name(name, digest);
	if (renameat(c->staging, STREAM_NAME, c->staging, name))
		return ls_fail_errno(err, "cannot name object %s", name);
	return add_record(c, digest, c->stream_bytes, object_location, err);
}

static int seal(struct ls_contents *c, struct ls_pack_footer *footer, struct ls_error *err)
{
	uint8_t digest[32];
	int status;

	*footer = (struct ls_pack_footer){
	    .version = LS_PACK_VERSION,
	    .slot_count = (uint32_t)(c->slots.length / sizeof(struct ls_pack_slot)),
	    .contents_bytes = c->pack_bytes,
	};
	memcpy(footer->magic, LS_PACK_MAGIC, sizeof(footer->magic));
	status = ls_b3_hash(c->slots.bytes, c->slots.length, footer->slots_digest, err);
	if (!status)
		status = ls_b3_hash(footer, offsetof(struct ls_pack_footer, footer_digest), digest, err);
	if (!status)
		memcpy(footer->footer_digest, digest, sizeof(footer->footer_digest));
	return status;
}

static int finish_pack(struct ls_contents *c, struct ls_error *err)
{
	struct ls_pack_footer footer;
	uint64_t contents_bytes = c->pack_bytes;
	int status = seal(c, &footer, err);

	if (status)
		return status;
	add_vector(c, c->slots.bytes, c->slots.length);
	add_vector(c, &footer, sizeof(footer));
	status = flush_pack(c, err);
	c->pack_bytes = contents_bytes;
	return status;
}

static int sync_staged(const struct ls_contents *c, const char *name)
{
	int fd = openat(c->staging, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	int status = fd < 0 ? -1 : fsync(fd);
	int cause = errno;

	if (fd >= 0)
		close(fd);
	errno = cause;
	return status;
}

/* The sync of the whole import comes later. But what has the place already may be in use, by another import that was faster: then
 * a loss of power must not find an empty file there. */
static int move_object(const struct ls_contents *c, const char *name, int objects, const char *place)
{
	if (!renameat2(c->staging, name, objects, place, RENAME_NOREPLACE))
		return 0;
	/* EINVAL: a file system that cannot tell. */
	if ((errno != EEXIST && errno != EINVAL) || sync_staged(c, name))
		return -1;
	return renameat(c->staging, name, objects, place);
}

/* The directory is made with the first object of it: most stores have few objects. */
static int place_object(struct ls_contents *c, int objects, const uint8_t *digest, struct ls_error *err)
{
	char name[65], place[66];
	int status;

	object_name(name, digest);
	memcpy(place, name, 2);
	place[2] = '\0';
	memcpy(place + 3, name + 2, 63);
	if (mkdirat(objects, place, 0700) && errno != EEXIST)
		return ls_fail_errno(err, "cannot make directory %s for an object", place);
	place[2] = '/';
	status = move_object(c, name, objects, place);
	if (status)
		return ls_fail_errno(err, "cannot move object %s to its place in the store", name);
	return LS_OK;
}

int ls_contents_publish(struct ls_contents *c, int objects, uint32_t pack, struct ls_error *err)
{
	struct ls_digest_record *records = (struct ls_digest_record *)(void *)c->records.bytes;
	size_t count = c->records.length / sizeof(*records);
	int status;

	if (pack >= LS_LOCATION_NONE)
		return ls_fail(err, LS_LIMIT, "a pack cannot have the number %u: the highest is %u", pack,
		               LS_LOCATION_NONE - 1);
	status = finish_pack(c, err);
	for (size_t i = 0; i < count && !status; i++) {
		if (records[i].location.pack == LS_LOCATION_OBJECT)
			status = place_object(c, objects, records[i].digest, err);
		else
			records[i].location.pack = pack;
	}
	return status;
}

struct ls_contents_counts ls_contents_counts(const struct ls_contents *c)
{
	return c->counts;
}

const struct ls_digest_record *ls_contents_records(const struct ls_contents *c, uint32_t *count)
{
	*count = (uint32_t)(c->records.length / sizeof(struct ls_digest_record));
	return (const struct ls_digest_record *)(const void *)c->records.bytes;
}

const struct ls_pack_slot *ls_contents_slots(const struct ls_contents *c, uint32_t *count, uint64_t *bytes)
{
	*count = (uint32_t)(c->slots.length / sizeof(struct ls_pack_slot));
	*bytes = c->pack_bytes;
	return (const struct ls_pack_slot *)(const void *)c->slots.bytes;
}
