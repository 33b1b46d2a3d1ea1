/* The walk of an upper directory, or of a stack of them, beside the tree of the chain. Private to this folder.
 *
 * Of a stack a name is what the topmost upper that has it says; a directory that several have is one, as overlayfs merges
 * them: down to the first that is opaque, or where the name is none of a directory, by way of each one's redirect. */
#ifndef LS_UPPER_WALK_H
#define LS_UPPER_WALK_H

#include <sys/stat.h>
#include <sys/types.h>

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
	uint8_t place;     /* of the directory's, which one has the name */
	uint32_t origin;   /* the chain's record that shows, or would show, through this name; LS_NONE */
	uint32_t base;     /* the chain's record at the item's path, which it replaces or keeps; LS_NONE */
};

/* A directory in one of the uppers. */
struct upper_place {
	int fd;       /* -1 while too many are open */
	size_t layer; /* of which upper: 0 is the topmost */
	dev_t device; /* of one that is not open */
	ino_t inode;
	char *path; /* in that upper; NULL in the topmost, where it is the walk's */
};

/* What is one directory to the container, top first. */
struct upper_places {
	struct upper_place *at;
	size_t count;
};

/* One directory on the way down. Where origin and base are the same, the names are the upper directory's alone; else also
 * the chain's at both. */
struct upper_frame {
	struct upper_item *items;
	size_t count, next;
	struct ls_buffer names;     /* of the upper directory: each its place, its type and its name with a NUL */
	struct upper_places places; /* none where only the chain has it */
	int is_pending;             /* an entry only if there is one below */
	uint32_t origin, base;
	size_t path_length;
};

struct upper_walk {
	const struct ls_index *index; /* NULL: of the uppers alone */
	int by_path;                  /* in the order of whole paths, what is in a directory not right behind it */
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

/* Stand at the root of the uppers, top first, whose descriptors stay the caller's. End a walk that did not begin, too. */
int upper_walk_begin(struct upper_walk *walk, const struct ls_index *index, const int *uppers, size_t upper_count,
                     int by_path, struct ls_error *err);
void upper_walk_end(struct upper_walk *walk);

static inline struct upper_frame *upper_walk_top(const struct upper_walk *walk)
{
	return &walk->frames[walk->depth - 1];
}

/* The next item of the directory on top, whose path is the walk's then; NULL after the last. It lives until the walk
 * leaves the directory. */
int upper_walk_next(struct upper_walk *walk, struct upper_item **item, struct ls_error *err);

static inline int upper_walk_fd(const struct upper_walk *walk, const struct upper_item *item)
{
	return upper_walk_top(walk)->places.at[item->place].fd;
}

static inline size_t upper_walk_layer(const struct upper_walk *walk, const struct upper_item *item)
{
	return upper_walk_top(walk)->places.at[item->place].layer;
}

/* Go down into the directory at the walk's path: `places`, which are the walk's from here on, none where only the chain has
 * it. `origin` and `base` are directories of the chain or LS_NONE. */
int upper_walk_enter(struct upper_walk *walk, struct upper_places *places, uint32_t origin, uint32_t base,
                     struct ls_error *err);
void upper_places_free(struct upper_places *places);
int upper_walk_leave(struct upper_walk *walk, struct ls_error *err);

/* Open the item for reading; a descriptor, or -1 with errno. The second: a directory, LS_OK, UPPER_CHANGED or LS_SYSTEM. */
int upper_walk_open(const struct upper_walk *walk, const struct upper_item *item, int flags);
int upper_walk_open_directory(const struct upper_walk *walk, const struct upper_item *item, int *fd,
                              struct ls_error *err);

/* Ask the kernel for the type of an item. */
int upper_walk_set_type(const struct upper_walk *walk, struct upper_item *item, struct ls_error *err);

/* One attribute of overlayfs: its length, also where `capacity` is 0 and no value is wanted; UPPER_NO_MARK where there is
 * none, or one that is longer than any that overlayfs gives. */
#define UPPER_NO_MARK (-1)
int upper_walk_mark(const struct upper_walk *walk, int fd, const char *name, void *value, size_t capacity,
                    ssize_t *length, struct ls_error *err);

/* What is below an item in the uppers, and then in the chain. `redirect` and `is_opaque` are the item's own, and become
 * what the whole stack says of the chain: where it is found there, and that nothing of it shows.
 *
 * Of a directory: itself, `fd`, which is the places' whatever comes of it, and those that it is merged with; the
 * chain's directory that shows through, or LS_NONE. The second reads the item's own from it first. */
int upper_walk_merge(const struct upper_walk *walk, const struct upper_item *item, int fd, int *is_opaque,
                     struct upper_redirect *redirect, struct upper_places *places, uint32_t *origin,
                     struct ls_error *err);
int upper_walk_merge_own(const struct upper_walk *walk, const struct upper_item *item, int fd, int *is_opaque,
                         struct upper_redirect *redirect, struct upper_places *places, uint32_t *origin,
                         struct ls_error *err);

/* Of a file that has its attributes alone: the file of a lower upper that has the content, or none and the record of the
 * chain, LS_NONE where that leads nowhere. */
int upper_walk_content(const struct upper_walk *walk, const struct upper_item *item, struct upper_redirect *redirect,
                       struct upper_places *places, uint32_t *origin, struct ls_error *err);

/* Where an item is in its upper, for the caller to free; NULL where there is no memory. */
char *upper_walk_place_path(const struct upper_walk *walk, const struct upper_item *item);

/* LS_SYSTEM with the present errno, naming the walk's path; LS_NO_MEMORY. */
int upper_walk_fail(const struct upper_walk *walk, struct ls_error *err);
int upper_out_of_memory(struct ls_error *err);

static inline int upper_is_directory(const struct upper_walk *walk, uint32_t record)
{
	return record != LS_NONE && S_ISDIR(walk->index->records[record].mode);
}

#endif
