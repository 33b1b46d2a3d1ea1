/* libFuzzer: any bytes as the tar of a layer, taken in whole and cut in two, must give the same index, recipe, pack and
 * records, or the same error.
 *
 * The first two bytes of an input say where it is cut, the rest is the tar. The files are small and on a tmpfs where
 * there is one. Header checksums are mended by the mutator, so that mutations get past them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "content/contents.h"
#include "content/ingest.h"
#include "index/index.h"
#include "index/index_verify.h"
#include "require.h"

#define BLOCK 512
#define THRESHOLD 600

static const struct ls_tar_limits limits = {
    .path_bytes = 300,
    .name_bytes = 100,
    .extended_bytes = 4096,
    .sparse_extents = 64,
    .file_bytes = 1 << 20,
    .entries = 20,
};

/* Where the import puts its files: one directory for the whole run. */
struct place {
	int staging, objects;
};

static char directory[] = "/dev/shm/fuzz_ingest.XXXXXX";

static void remove_directory(void)
{
	char path[sizeof(directory) + 16];

	for (int i = 0; i < 256; i++) {
		snprintf(path, sizeof(path), "%s/o/%02x", directory, i);
		rmdir(path);
	}
	snprintf(path, sizeof(path), "%s/o", directory);
	rmdir(path);
	snprintf(path, sizeof(path), "%s/s", directory);
	rmdir(path);
	rmdir(directory);
}

static int make_below(int parent, const char *name)
{
	int fd;

	REQUIRE(!mkdirat(parent, name, 0700));
	fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	REQUIRE(fd >= 0);
	return fd;
}

static struct place make_place(void)
{
	struct place place;
	int fd;

	if (!mkdtemp(directory)) {
		memcpy(directory, "/var/tmp/", 9);
		REQUIRE(mkdtemp(directory));
	}
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	REQUIRE(fd >= 0);
	atexit(remove_directory);
	place.staging = make_below(fd, "s");
	place.objects = make_below(fd, "o");
	close(fd);
	return place;
}

static void object_name(char name[67], const uint8_t *digest, int slash)
{
	for (int i = 0; i < 32; i++) {
		name += sprintf(name, "%02x", digest[i]);
		if (!i && slash)
			*name++ = '/';
	}
	*name = '\0';
}

struct outcome {
	int status;
	char message[1024];
	struct ls_buffer index, recipe, pack, records;
};

static void free_outcome(struct outcome *outcome)
{
	ls_buffer_free(&outcome->index);
	ls_buffer_free(&outcome->recipe);
	ls_buffer_free(&outcome->pack);
	ls_buffer_free(&outcome->records);
}

/* The span in memory of its own, so that reading past it, or after it, is seen. */
static int feed(struct ls_ingest *ingest, const uint8_t *bytes, size_t length, struct outcome *outcome,
                struct ls_error *err)
{
	struct ls_buffer recipe = {0};
	uint8_t *copy;
	int status;

	if (!length)
		return LS_OK;
	copy = malloc(length);
	REQUIRE(copy);
	memcpy(copy, bytes, length);
	status = ls_ingest_feed(ingest, copy, length, err);
	free(copy);
	if (!status)
		status = ls_ingest_take_recipe(ingest, &recipe, err);
	if (!status)
		status = ls_buffer_append(&outcome->recipe, recipe.bytes, recipe.length, err);
	ls_buffer_free(&recipe);
	return status;
}

static int take_in(struct ls_ingest *ingest, const uint8_t *bytes, size_t length, size_t cut, struct outcome *outcome,
                   struct ls_error *err)
{
	static const uint8_t key[16];
	struct ls_buffer recipe = {0};
	int status = feed(ingest, bytes, cut, outcome, err);

	if (!status)
		status = feed(ingest, bytes + cut, length - cut, outcome, err);
	if (!status)
		status = ls_ingest_finish(ingest, err);
	if (!status)
		status = ls_ingest_take_recipe(ingest, &recipe, err);
	if (!status)
		status = ls_buffer_append(&outcome->recipe, recipe.bytes, recipe.length, err);
	ls_buffer_free(&recipe);
	return status ? status : ls_ingest_index(ingest, key, &outcome->index, err);
}

/* Compare what is stored with its digests, and leave the directories empty. */
static void take_stored(const struct place *place, const struct ls_contents *contents, int pack, int published,
                        struct outcome *outcome)
{
	uint32_t count;
	const struct ls_digest_record *records = ls_contents_records(contents, &count);
	struct stat found;

	for (uint32_t i = 0; i < count; i++) {
		char name[67];

		if (records[i].location.pack != LS_LOCATION_OBJECT)
			continue;
		object_name(name, records[i].digest, published);
		REQUIRE(!fstatat(published ? place->objects : place->staging, name, &found, 0));
		REQUIRE((uint64_t)found.st_size == records[i].size && records[i].size > THRESHOLD);
		REQUIRE(!unlinkat(published ? place->objects : place->staging, name, 0));
	}
	if (!published) {
		/* What an import was given up in goes with its staging directory. */
		REQUIRE(!unlinkat(place->staging, "stream", 0) || errno == ENOENT);
		return;
	}
	REQUIRE(!fstat(pack, &found));
	REQUIRE(!ls_buffer_append(&outcome->pack, NULL, (size_t)found.st_size, NULL));
	REQUIRE(pread(pack, outcome->pack.bytes, outcome->pack.length, 0) == (ssize_t)outcome->pack.length);
	REQUIRE(!ls_buffer_append(&outcome->records, count ? records : NULL, count * sizeof(*records), NULL));
}

static void check_index(const struct outcome *outcome)
{
	struct ls_index index;

	REQUIRE(!ls_index_open(&index, outcome->index.bytes, outcome->index.length, NULL));
	REQUIRE(!ls_index_verify(&index, NULL));
}

static void run(const struct place *place, const uint8_t *bytes, size_t length, size_t cut, struct outcome *outcome)
{
	const struct ls_b3_kernel *kernel;
	struct ls_digests known;
	struct ls_contents *contents;
	struct ls_ingest *ingest;
	struct ls_error err = {0};
	int pack = memfd_create("pack", MFD_CLOEXEC);

	REQUIRE(pack >= 0 && !ls_b3_kernel_find(NULL, &kernel, NULL) && !ls_digests_init(&known, NULL));
	REQUIRE(!ls_contents_new(&contents, place->staging, pack, &known, THRESHOLD, kernel, NULL));
	REQUIRE(!ls_ingest_new(&ingest, contents, &limits, NULL));
	outcome->status = take_in(ingest, bytes, length, cut, outcome, &err);
	ls_ingest_free(ingest);
	if (outcome->status) {
		REQUIRE(err.status == outcome->status && outcome->status != LS_SYSTEM);
		memcpy(outcome->message, err.message, sizeof(err.message));
	} else {
		REQUIRE(!ls_contents_publish(contents, place->objects, 3, NULL));
		check_index(outcome);
	}
	take_stored(place, contents, pack, !outcome->status, outcome);
	ls_contents_free(contents);
	ls_digests_free(&known);
	close(pack);
}

static int same(const struct ls_buffer *a, const struct ls_buffer *b)
{
	return a->length == b->length && (!a->length || !memcmp(a->bytes, b->bytes, a->length));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	static struct place place;
	struct outcome whole = {0}, cut = {0};

	if (length < 2)
		return 0;
	if (!place.staging)
		place = make_place();
	length -= 2;
	run(&place, bytes + 2, length, length, &whole);
	run(&place, bytes + 2, length, (bytes[0] << 8 | bytes[1]) % (length + 1), &cut);
	REQUIRE(whole.status == cut.status && !strcmp(whole.message, cut.message));
	REQUIRE(whole.status || (same(&whole.index, &cut.index) && same(&whole.recipe, &cut.recipe) &&
	                         same(&whole.pack, &cut.pack) && same(&whole.records, &cut.records)));
	free_outcome(&whole);
	free_outcome(&cut);
	return 0;
}

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t length, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed);

/* Most mutations break a checksum, and nothing behind it would be reached: mend those of what looks like a header. */
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t most, unsigned seed)
{
	length = LLVMFuzzerMutate(bytes, length, most);
	if (seed % 16 == 0)
		return length;
	for (size_t at = 2; at + BLOCK <= length; at += BLOCK) {
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
