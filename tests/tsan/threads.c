/* The C core as threads use it together, for ThreadSanitizer: what one makes and many read, what each has of its own while it
 * shares parts with others, and what starts threads itself. `make tsan` builds and runs it.
 *
 * Each case runs some rounds in several threads that begin at once. ThreadSanitizer sees races; the cases check answers. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../fuzz/require.h"
#include "content/contents.h"
#include "content/ingest.h"
#include "content/rows.h"
#include "erofs/erofs.h"
#include "extent/extent_io.h"
#include "extent/extents.h"
#include "extent/log.h"
#include "hash/blake3.h"
#include "index/branches.h"
#include "index/compare.h"
#include "index/index_verify.h"
#include "index/index_writer.h"
#include "index/merge.h"
#include "index/provenance.h"
#include "index/resolve.h"
#include "tar/tar_writer.h"
#include "upper/clone_tree.h"

#define THREADS 4
#define ROUNDS 40
#define FILES 200

static pthread_barrier_t together;

struct worker {
	pthread_t thread;
	unsigned number;
	void (*run)(unsigned number);
};

static void *work(void *argument)
{
	struct worker *worker = argument;

	pthread_barrier_wait(&together);
	worker->run(worker->number);
	return NULL;
}

static void in_threads(const char *name, void (*run)(unsigned number))
{
	struct worker workers[THREADS];

	REQUIRE(!pthread_barrier_init(&together, NULL, THREADS));
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){.number = i, .run = run};
		REQUIRE(!pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	for (unsigned i = 0; i < THREADS; i++)
		REQUIRE(!pthread_join(workers[i].thread, NULL));
	pthread_barrier_destroy(&together);
	printf("tsan: %s\n", name);
}

/* ---- hashing: the processor is looked at by whoever comes first */

static void hash(unsigned number)
{
	const struct ls_b3_kernel *kernel;
	uint8_t bytes[3000], digest[LS_B3_DIGEST_BYTES], again[LS_B3_DIGEST_BYTES];
	const uint8_t *in = bytes;
	size_t length = sizeof(bytes);
	struct ls_b3_hasher hasher;

	memset(bytes, (int)number, sizeof(bytes));
	REQUIRE(!ls_b3_kernel_find(NULL, &kernel, NULL));
	REQUIRE(!ls_b3_hash_many(kernel, &in, &length, 1, digest, NULL));
	ls_b3_hasher_init(&hasher, kernel);
	ls_b3_hasher_update(&hasher, bytes, length);
	ls_b3_hasher_final(&hasher, again);
	REQUIRE(!memcmp(digest, again, sizeof(digest)));
}

/* ---- an index, of which each reads what it wants */

static struct ls_buffer layer_bytes, chain_bytes;
static struct ls_index layer, chain;
static struct ls_location locations[FILES];
static char names[FILES][16];

static void make_indexes(void)
{
	static struct ls_index_node nodes[FILES + 2];
	static struct ls_content contents[FILES];
	static const uint8_t key[16] = {7};
	const struct ls_index *layers[1] = {&layer};

	nodes[0] = (struct ls_index_node){.record = {.mode = S_IFDIR | 0755, .data = LS_NONE}, .name = ""};
	nodes[1] = (struct ls_index_node){.record = {.mode = S_IFLNK | 0777, .size = 2},
	                                  .inode = 1,
	                                  .name = "link",
	                                  .name_length = 4,
	                                  .target = "f0"};
	for (uint32_t i = 0; i < FILES; i++) {
		contents[i] = (struct ls_content){.digest = {(uint8_t)i, 1}, .size = i + 1};
		locations[i] = (struct ls_location){.pack = 1, .slot = i};
		snprintf(names[i], sizeof(names[i]), "f%u", i);
		nodes[i + 2] = (struct ls_index_node){.record = {.mode = S_IFREG | 0644, .size = i + 1, .data = i},
		                                      .inode = i + 2,
		                                      .name = names[i],
		                                      .name_length = (uint16_t)strlen(names[i])};
	}
	REQUIRE(!ls_index_write(LS_INDEX_LAYER, 1, key, nodes, FILES + 2, contents, FILES, &layer_bytes, NULL));
	REQUIRE(!ls_index_open(&layer, layer_bytes.bytes, layer_bytes.length, NULL));
	REQUIRE(!ls_merge(layers, 1, key, &chain_bytes, NULL));
	REQUIRE(!ls_index_open(&chain, chain_bytes.bytes, chain_bytes.length, NULL));
}

static void look_up(unsigned number)
{
	struct ls_path paths[FILES];
	uint32_t found[FILES];
	struct ls_row rows[FILES];

	for (unsigned i = 0; i < FILES; i++)
		paths[i] = (struct ls_path){names[i], strlen(names[i])};
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint32_t record = LS_NONE;
		int sys_errno = 0;

		REQUIRE(!ls_index_find_many(&chain, paths, FILES, found, NULL));
		REQUIRE(!ls_rows_of_paths(&chain, locations, paths, FILES, 1, rows, NULL));
		REQUIRE(rows[number].size == number + 1 && (uint32_t)rows[number].record == found[number]);
		REQUIRE(!ls_resolve(&chain, (struct ls_path){"link", 4}, 1, &record, &sys_errno, NULL));
		REQUIRE(record == found[0]);
	}
}

static void derive(unsigned number)
{
	static const uint8_t key[16] = {7};
	const struct ls_index *layers[2] = {&layer, &layer};

	for (unsigned round = 0; round < ROUNDS / 8; round++) {
		struct ls_buffer out = {0}, image = {0}, versions = {0};
		struct ls_layer_figures figures[2];

		REQUIRE(!ls_index_verify(number % 2 ? &chain : &layer, NULL));
		REQUIRE(!ls_merge(layers, 2, key, &out, NULL));
		REQUIRE(!ls_erofs_write_tree(&chain, locations, &image, NULL));
		REQUIRE(!ls_provenance(layers, 2, &versions, figures, NULL));
		ls_buffer_free(&out);
		ls_buffer_free(&image);
		ls_buffer_free(&versions);
	}
}

/* ---- the table of contents */

static struct ls_digest_record records[FILES];
static struct ls_digests table;

static void make_table(void)
{
	for (unsigned i = 0; i < FILES; i++)
		records[i] = (struct ls_digest_record){.digest = {(uint8_t)i, 9}, .size = 1, .location = {1, i}};
	REQUIRE(!ls_digests_init(&table, NULL));
	REQUIRE(!ls_digests_extend(&table, records, FILES, NULL));
}

static void locate(unsigned number)
{
	struct ls_location found[FILES];

	for (unsigned round = 0; round < ROUNDS; round++) {
		ls_digests_locate_many(&table, records[0].digest, sizeof(records[0]), FILES, found);
		REQUIRE(found[number].slot == number);
		REQUIRE(ls_digests_find(&table, records[number].digest) == number);
	}
}

/* ---- extent maps that share their blocks: each changes a clone of its own, and lets it go while others have it */

static struct ls_extents shared_map;

static void make_map(void)
{
	for (uint64_t i = 0; i < 3 * LS_EXTENT_BLOCK; i++)
		REQUIRE(!ls_extents_write(&shared_map, &(struct ls_piece){i * 8, 4, (i + 1) << 8}, NULL));
}

static void change_clones(unsigned number)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		struct ls_extents mine = {0}, second = {0};
		struct ls_piece piece = {number * 800 + round * 16, 3, UINT64_C(5) << LS_EXTENT_LOG_SHIFT | round},
				found[8];

		REQUIRE(!ls_extents_clone(&mine, &shared_map, NULL));
		REQUIRE(!ls_extents_write_many(&mine, &piece, 1, NULL));
		REQUIRE(!ls_extents_clone(&second, &mine, NULL));
		REQUIRE(!ls_extents_punch(&second, 0, 3000, NULL));
		REQUIRE(!ls_extents_truncate(&second, 100, NULL));
		REQUIRE(ls_extents_lookup(&mine, piece.start, piece.start + 3, found, 8) == 1);
		REQUIRE(found[0].source == piece.source);
		REQUIRE(ls_extents_lookup(&shared_map, 0, 4, found, 8) == 1 && found[0].source == 1 << 8);
		ls_extents_free(&mine);
		ls_extents_free(&second);
	}
}

/* ---- files: reading a log that another thread appends to, imports side by side, cloning trees */

static char directory[] = "/tmp/layerstore-tsan.XXXXXX";
static int top, log_file;

static void read_and_append(unsigned number)
{
	static const uint8_t id[16] = {1};
	uint8_t bytes[4096] = {1}, into[64];
	uint64_t position = 0;

	for (unsigned round = 0; round < ROUNDS; round++) {
		struct ls_log_record record = {.type = LS_LOG_WRITE, .inode = 1, .payload_length = 64};
		struct ls_read reads[2] = {{LS_READ_ZEROS, 0, into, 32}, {log_file, 0, into + 32, 32}};

		if (number) {
			REQUIRE(!ls_read_all(reads, 2, NULL));
			continue;
		}
		ls_log_seal(&record, bytes, id, 4096 + position);
		REQUIRE(!ls_log_append(log_file, 4096 + position, NULL, 0, &record, bytes, NULL));
		position += sizeof(record) + 64;
	}
}

static int open_below(int parent, const char *name)
{
	int fd;

	REQUIRE(!mkdirat(parent, name, 0700));
	fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	REQUIRE(fd >= 0);
	return fd;
}

static struct ls_buffer tar_bytes;

static void make_tar(void)
{
	struct ls_tar_writer writer = {0};

	for (unsigned i = 0; i < FILES; i++) {
		struct ls_tar_entry entry = {
		    .type = LS_TAR_REGULAR,
		    .mode = 0644,
		    .size = 100,
		    .stored_size = 100,
		    .path = {(const uint8_t *)names[i], strlen(names[i])},
		};
		uint8_t bytes[100] = {(uint8_t)i};

		REQUIRE(!ls_tar_write_entry(&writer, &entry, NULL));
		REQUIRE(!ls_tar_write_data(&writer, bytes, sizeof(bytes), NULL));
		REQUIRE(!ls_tar_write_data_end(&writer, NULL));
	}
	REQUIRE(!ls_tar_write_end(&writer, NULL));
	tar_bytes = writer.out;
}

/* As imports in threads do: each its staging directory and pack, and one table of what is known. */
static void import(unsigned number)
{
	const struct ls_b3_kernel *kernel;
	struct ls_contents *contents;
	struct ls_ingest *ingest;
	struct ls_buffer index = {0};
	static const uint8_t key[16];
	char name[16];
	int staging, pack;

	snprintf(name, sizeof(name), "import%u", number);
	staging = open_below(top, name);
	pack = openat(staging, "pack", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	REQUIRE(pack >= 0 && !ls_b3_kernel_find(NULL, &kernel, NULL));
	REQUIRE(!ls_contents_new(&contents, staging, pack, &table, 1 << 17, kernel, NULL));
	REQUIRE(!ls_ingest_new(&ingest, contents, &ls_tar_default_limits, NULL));
	REQUIRE(!ls_ingest_feed(ingest, tar_bytes.bytes, tar_bytes.length, NULL));
	REQUIRE(!ls_ingest_finish(ingest, NULL) && !ls_ingest_index(ingest, key, &index, NULL));
	REQUIRE(!ls_contents_publish(contents, staging, number, NULL));
	ls_buffer_free(&index);
	ls_ingest_free(ingest);
	ls_contents_free(contents);
	close(pack);
	close(staging);
}

static void make_tree(void)
{
	char name[32], other[32];
	int fd, sub;

	fd = open_below(top, "tree");
	for (unsigned d = 0; d < 8; d++) {
		snprintf(name, sizeof(name), "d%u", d);
		sub = open_below(fd, name);
		for (unsigned i = 0; i < FILES / 4; i++) {
			int file;

			snprintf(name, sizeof(name), "f%u", i);
			snprintf(other, sizeof(other), "l%u-%u", d, i);
			file = openat(sub, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
			REQUIRE(file >= 0 && write(file, name, sizeof(name)) == sizeof(name) && !close(file));
			if (i % 4 == 0)
				REQUIRE(!linkat(sub, name, fd, other, 0));
		}
		close(sub);
	}
	close(fd);
}

static void clone_tree(unsigned number)
{
	char name[32];
	struct ls_error err;
	int has_copied;

	for (unsigned round = 0; round < 4; round++) {
		snprintf(name, sizeof(name), "clone%u-%u", number, round);
		if (ls_clone_tree(top, "tree", top, name, &has_copied, &err)) {
			fprintf(stderr, "%s\n", err.message);
			abort();
		}
	}
}

static void make_place(void)
{
	REQUIRE(mkdtemp(directory));
	top = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	log_file = openat(top, "log", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	REQUIRE(top >= 0 && log_file >= 0 && !ftruncate(log_file, 4096));
}

int main(void)
{
	char command[sizeof(directory) + 16];

	in_threads("hashing", hash);
	make_indexes();
	in_threads("looking up in one index", look_up);
	in_threads("deriving from one index", derive);
	make_table();
	in_threads("locating contents", locate);
	make_map();
	in_threads("extent maps that share blocks", change_clones);
	make_place();
	in_threads("reading a log that grows", read_and_append);
	make_tar();
	in_threads("imports", import);
	make_tree();
	in_threads("cloning trees", clone_tree);
	snprintf(command, sizeof(command), "rm -rf %s", directory);
	return system(command);
}
