/* The walk of an upper directory beside the tree of the chain. Private to this folder. */
#ifndef LS_UPPER_WALK_H
#define LS_UPPER_WALK_H

#include <sys/stat.h>

#include "base/buffer.h"
#include "index/index.h"

/* An item's type when the upper directory does not have the name: the chain alone does. The others are those of
 * dirent.h, among them DT_WHT for what hides the chain's, and for what has gone since its directory was read. */
#define UPPER_ABSENT 255

/* What came of an item: an enum ls_status, or that it is no longer what its type says. */
#define UPPER_CHANGED (-1)

/* One name of a directory that is walked. */
struct upper_item {
	const char *name; /* ends with a NUL if the upper directory has it */
	uint16_t length;
	uint8_t type;
	uint8_t is_inside; /* stands for what is in the directory, which a walk by path comes to later */
	uint32_t origin;   /* the chain's record that shows, or would show, through this name; LS_NONE */
	uint32_t base;     /* the chain's record at the item's path, which it replaces or keeps; LS_NONE */
};

/* One directory on the way down. Where origin and base are the same, the names are the upper directory's alone; else also
 * the chain's at both. */
struct upper_frame {
	struct upper_item *items;
	size_t count, next;
	struct ls_buffer names; /* of the upper directory: each its type and its name with a NUL */
	int in_upper;           /* the upper directory has it */
	int fd;                 /* of the upper directory; -1 while too many are open */
	dev_t device;           /* of one that is not open */
	ino_t inode;
	int is_pending; /* an entry only if there is one below */
	uint32_t origin, base;
	size_t path_length;
};

struct upper_walk {
	const struct ls_index *index;
	int by_path; /* in the order of whole paths, what is in a directory not right behind it */
	struct upper_frame *frames;
	size_t depth, capacity;
	char *names;        /* as the kernel gives them */
	size_t path_length; /* of the present item */
	char path[LS_INDEX_MAX_PATH_BYTES];
};

/* The text that says where a moved thing was: overlayfs's redirect. */
struct upper_redirect {
	size_t length; /* 0: none */
	char text[LS_INDEX_MAX_PATH_BYTES];
};

/* Stand at the root, whose descriptor stays the caller's. End a walk that did not begin, too. */
int upper_walk_begin(struct upper_walk *walk, const struct ls_index *index, int upper_fd, int by_path,
                     struct ls_error *err);
void upper_walk_end(struct upper_walk *walk);

static inline struct upper_frame *upper_walk_top(const struct upper_walk *walk)
{
	return &walk->frames[walk->depth - 1];
}

/* The next item of the directory on top, whose path is the walk's then; NULL after the last. It lives until the walk
 * leaves the directory. */
int upper_walk_next(struct upper_walk *walk, struct upper_item **item, struct ls_error *err);

/* Go down into the directory at the walk's path: `fd`, which is the walk's from here on, or -1 where only the chain has
 * it. `origin` and `base` are directories of the chain or LS_NONE. */
int upper_walk_enter(struct upper_walk *walk, int fd, uint32_t origin, uint32_t base, struct ls_error *err);
int upper_walk_leave(struct upper_walk *walk, struct ls_error *err);

/* Open the item for reading; a descriptor, or -1 with errno. The second: a directory, LS_OK, UPPER_CHANGED or LS_SYSTEM. */
int upper_walk_open(const struct upper_walk *walk, const struct upper_item *item, int flags);
int upper_walk_open_directory(const struct upper_walk *walk, const struct upper_item *item, int *fd,
                              struct ls_error *err);

/* Ask the kernel for the type of an item. */
int upper_walk_set_type(const struct upper_walk *walk, struct upper_item *item, struct ls_error *err);

/* The record of the chain that shows through the item, a name of the directory on top, when it has this redirect;
 * LS_NONE where that leads nowhere. */
int upper_walk_follow(const struct upper_walk *walk, const struct upper_item *item,
                      const struct upper_redirect *redirect, uint32_t *origin, struct ls_error *err);

/* The same for a directory, of which only a directory of the chain shows through. */
int upper_walk_origin(const struct upper_walk *walk, const struct upper_item *item, int is_opaque,
                      const struct upper_redirect *redirect, uint32_t *origin, struct ls_error *err);

/* LS_SYSTEM with the present errno, naming the walk's path; LS_NO_MEMORY. */
int upper_walk_fail(const struct upper_walk *walk, struct ls_error *err);
int upper_out_of_memory(struct ls_error *err);

static inline int upper_is_directory(const struct upper_walk *walk, uint32_t record)
{
	return record != LS_NONE && S_ISDIR(walk->index->records[record].mode);
}

#endif
