#include "clone_tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/files.h"
#include "clone_crew.h"
#include "clone_entry.h"
#include "clone_impl.h"

/* Threads do not pay for fewer files than this in the whole tree; a piece of work has about so many. */
#define ALONE_FILES 256
#define PIECE_FILES 64
/* How the directories of both trees are opened. */
#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

/* A directory that is being cloned. Once read, its files are cloned, maybe by helpers, and the directories in it entered
 * one by one. Whoever is the last to need it gives it its attributes and frees it. */
struct frame {
	struct walk *walk;
	DIR *source;
	int target_fd;
	struct stat status;
	struct ls_buffer files, subdirectories; /* names, each with its NUL; they stay while somebody needs them */
	size_t next;                            /* of the subdirectories, which to enter */
	atomic_int users;                       /* the walk, and each piece of work */
	atomic_int changed;                     /* something went after the directory was read */
	int passes;
	struct frame *again; /* the next one to read again */
};

struct walk {
	struct ls_clone clone; /* of the thread that walks */
	struct ls_crew crew;
	struct frame **frames; /* from the top of the tree down */
	size_t depth, capacity;
	size_t files;
	atomic_int failed;
	pthread_mutex_t lock; /* of what follows */
	struct frame *again;
	struct ls_error failure; /* the first; its status is LS_OK before */
};

static void note_failure(struct walk *walk, int status, const struct ls_error *err)
{
	if (status <= 0)
		return;
	pthread_mutex_lock(&walk->lock);
	if (!walk->failure.status)
		walk->failure = *err;
	pthread_mutex_unlock(&walk->lock);
	atomic_store(&walk->failed, 1);
}

static void close_frame(struct frame *frame)
{
	if (frame->source)
		closedir(frame->source);
	if (frame->target_fd >= 0)
		close(frame->target_fd);
	ls_buffer_free(&frame->subdirectories);
	ls_buffer_free(&frame->files);
	free(frame);
}

static void read_again_later(struct frame *frame)
{
	struct walk *walk = frame->walk;

	pthread_mutex_lock(&walk->lock);
	frame->again = walk->again;
	walk->again = frame;
	pthread_mutex_unlock(&walk->lock);
}

/* The walk, or a piece of work, is done with a directory. */
static void release(struct ls_clone *clone, struct frame *frame)
{
	int status;

	if (atomic_fetch_sub(&frame->users, 1) > 1)
		return;
	if (!atomic_load(&frame->walk->failed)) {
		if (atomic_load(&frame->changed) && frame->passes + 1 < LS_CLONE_PASSES) {
			read_again_later(frame);
			return;
		}
		status = ls_clone_attributes(clone, dirfd(frame->source), frame->target_fd, &frame->status, ".");
		note_failure(frame->walk, status, clone->err);
	}
	close_frame(frame);
}

static int push(struct walk *walk, struct frame *frame)
{
	int status = ls_array_reserve(&walk->frames, &walk->capacity, walk->depth + 1, sizeof(struct frame *),
	                              "directories of a tree, one in another", walk->clone.err);

	if (status)
		return status;
	atomic_store(&frame->users, 1);
	walk->frames[walk->depth++] = frame;
	return LS_OK;
}

static struct frame *top(const struct walk *walk)
{
	return walk->frames[walk->depth - 1];
}

static int open_frame(struct frame *frame, int target_parent, const char *target)
{
	if (fstat(dirfd(frame->source), &frame->status))
		return -1;
	if (mkdirat(target_parent, target, 0700) && errno != EEXIST)
		return -1;
	frame->target_fd = openat(target_parent, target, DIRECTORY);
	return frame->target_fd < 0 ? -1 : 0;
}

/* Go down into a directory. LS_CLONE_CHANGED where it has gone. */
static int enter(struct walk *walk, int source_parent, const char *source, int target_parent, const char *target)
{
	struct frame *frame = calloc(1, sizeof(*frame));
	int status;

	if (!frame)
		return ls_fail(walk->clone.err, LS_NO_MEMORY, "out of memory for a directory");
	frame->walk = walk;
	frame->target_fd = -1;
	frame->source = ls_read_directory(openat(source_parent, source, DIRECTORY));
	if (!frame->source && walk->depth && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP))
		status = LS_CLONE_CHANGED;
	else if (!frame->source || open_frame(frame, target_parent, target))
		status = ls_clone_fail(&walk->clone, source);
	else
		status = push(walk, frame);
	if (status)
		close_frame(frame);
	return status;
}

/* Clone files of a directory; those whose content is on its way to the disk after the others. */
static int clone_files(struct ls_clone *clone, struct frame *frame, const char *names, size_t length, int may_defer)
{
	struct ls_buffer later = {0};
	const char *end = names + length;
	int status = LS_OK;

	for (const char *name = names; name != end && status <= 0; name += strlen(name) + 1) {
		status = ls_clone_file(clone, dirfd(frame->source), frame->target_fd, name, may_defer);
		if (status == LS_CLONE_CHANGED)
			atomic_store(&frame->changed, 1);
		else if (status == LS_CLONE_LATER)
			status = ls_buffer_append(&later, name, strlen(name) + 1, clone->err);
	}
	if (status <= 0 && later.length)
		status = clone_files(clone, frame, (const char *)later.bytes, later.length, 0);
	ls_buffer_free(&later);
	return status > 0 ? status : LS_OK;
}

static void run_piece(struct ls_clone *clone, const struct ls_crew_piece *piece)
{
	struct frame *frame = piece->directory;
	struct walk *walk = frame->walk;

	if (!atomic_load(&walk->failed))
		note_failure(walk, clone_files(clone, frame, piece->names, piece->length, 1), clone->err);
	release(clone, frame);
}

/* The files of a directory that was just read: here, or by the crew. */
static int clone_all_files(struct walk *walk, struct frame *frame)
{
	const char *names = (const char *)frame->files.bytes;
	const char *end;

	if (!frame->files.length)
		return LS_OK;
	if (walk->files < ALONE_FILES)
		return clone_files(&walk->clone, frame, names, frame->files.length, 1);
	end = names + frame->files.length;
	while (names != end) {
		struct ls_crew_piece piece = {.directory = frame, .names = names};

		for (int i = 0; i < PIECE_FILES && names != end; i++)
			names += strlen(names) + 1;
		piece.length = (size_t)(names - piece.names);
		atomic_fetch_add(&frame->users, 1);
		ls_crew_add(&walk->crew, &walk->clone, piece);
	}
	return LS_OK;
}

/* Note the name of a file or directory, clone what is neither. */
static int read_entry(struct walk *walk, struct frame *frame, const struct dirent *entry)
{
	int source_fd = dirfd(frame->source);
	unsigned char type = entry->d_type;
	struct ls_buffer *names;
	struct stat status;

	if (frame->passes && !fstatat(frame->target_fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
		return LS_OK;
	if (type == DT_UNKNOWN) {
		if (fstatat(source_fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
			return errno == ENOENT ? LS_CLONE_CHANGED : ls_clone_fail(&walk->clone, entry->d_name);
		type = IFTODT(status.st_mode);
	}
	if (type != DT_REG && type != DT_DIR)
		return ls_clone_special(&walk->clone, source_fd, frame->target_fd, entry->d_name);
	walk->files += type == DT_REG;
	names = type == DT_REG ? &frame->files : &frame->subdirectories;
	return ls_buffer_append(names, entry->d_name, strlen(entry->d_name) + 1, walk->clone.err);
}

static int read_entries(struct walk *walk, struct frame *frame)
{
	const struct dirent *entry;
	int status;

	frame->files.length = frame->subdirectories.length = frame->next = 0;
	while ((entry = ls_next_entry(frame->source))) {
		status = read_entry(walk, frame, entry);
		if (status > 0)
			return status;
		if (status == LS_CLONE_CHANGED)
			atomic_store(&frame->changed, 1);
	}
	return errno ? ls_clone_fail(&walk->clone, ".") : clone_all_files(walk, frame);
}

static int step(struct walk *walk)
{
	struct frame *frame = top(walk);
	const char *name;
	int status;

	if (frame->next == frame->subdirectories.length) {
		walk->depth--;
		release(&walk->clone, frame);
		return LS_OK;
	}
	name = (const char *)frame->subdirectories.bytes + frame->next;
	frame->next += strlen(name) + 1;
	status = enter(walk, dirfd(frame->source), name, frame->target_fd, name);
	if (status == LS_CLONE_CHANGED) {
		atomic_store(&frame->changed, 1);
		return LS_OK;
	}
	return status ? status : read_entries(walk, top(walk));
}

/* Go down from the directory on top until it and all that is below is done, or something failed. */
static void walk_down(struct walk *walk)
{
	int status = read_entries(walk, top(walk));

	while (!status && walk->depth && !atomic_load(&walk->failed))
		status = step(walk);
	note_failure(walk, status, walk->clone.err);
	while (walk->depth)
		release(&walk->clone, walk->frames[--walk->depth]);
	ls_crew_finish(&walk->crew, &walk->clone);
}

static struct frame *take_changed(struct walk *walk)
{
	struct frame *frame;

	pthread_mutex_lock(&walk->lock);
	frame = walk->again;
	if (frame)
		walk->again = frame->again;
	pthread_mutex_unlock(&walk->lock);
	return frame;
}

static void read_changed_again(struct walk *walk)
{
	struct frame *frame;

	while ((frame = take_changed(walk))) {
		int status = atomic_load(&walk->failed) ? LS_OK : push(walk, frame);

		note_failure(walk, status, walk->clone.err);
		if (atomic_load(&walk->failed)) {
			close_frame(frame);
			continue;
		}
		frame->passes++;
		atomic_store(&frame->changed, 0);
		rewinddir(frame->source);
		walk_down(walk);
	}
}

static void walk_all(struct walk *walk, int source_fd)
{
	const struct ls_clone_shared *shared = walk->clone.shared;
	int status = enter(walk, source_fd, shared->source, shared->target_fd, shared->target);

	note_failure(walk, status, walk->clone.err);
	if (status)
		return;
	walk_down(walk);
	read_changed_again(walk);
}

/* Take away the directory of links: its names, as the inodes have others. */
static int remove_links(const struct ls_clone *clone)
{
	const struct ls_clone_shared *shared = clone->shared;
	char path[PATH_MAX];
	DIR *directory;
	const struct dirent *entry;
	int failed = 0;

	if (shared->links_fd < 0)
		return LS_OK;
	directory = ls_read_directory(shared->links_fd);
	if (!directory)
		return ls_clone_fail(clone, ".links");
	while (!failed && (entry = ls_next_entry(directory)))
		failed = unlinkat(shared->links_fd, entry->d_name, 0);
	closedir(directory);
	snprintf(path, sizeof(path), "%s.links", shared->target);
	if (failed || unlinkat(shared->target_fd, path, AT_REMOVEDIR))
		return ls_clone_fail(clone, ".links");
	return LS_OK;
}

int ls_clone_tree(int source_fd, const char *source, int target_fd, const char *target, int *has_copied,
                  struct ls_error *err)
{
	struct ls_clone_shared shared = {
	    .source = source,
	    .target_fd = target_fd,
	    .target = target,
	    .links_lock = PTHREAD_MUTEX_INITIALIZER,
	    .links_fd = -1,
	};
	struct walk walk = {.clone = {.shared = &shared}, .lock = PTHREAD_MUTEX_INITIALIZER};
	struct ls_error own;

	walk.clone.err = &own;
	walk.clone.names = malloc(2 * LS_XATTRS_BYTES);
	if (!walk.clone.names)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for the attributes of a file");
	walk.clone.value = walk.clone.names + LS_XATTRS_BYTES;
	ls_crew_begin(&walk.crew, &shared, run_piece);
	walk_all(&walk, source_fd);
	ls_crew_end(&walk.crew);
	note_failure(&walk, remove_links(&walk.clone), &own);
	free(walk.frames);
	free(walk.clone.names);
	*has_copied = atomic_load(&shared.has_copied);
	if (walk.failure.status && err)
		*err = walk.failure;
	return walk.failure.status;
}
