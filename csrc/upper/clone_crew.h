/* Threads that clone the files of directories while the walk goes on. Private to the clone_*.c.
 *
 * Making a file costs XFS a processor's time, nearly all of it in the kernel, and it lets several threads
 * do so at once: with two processors it takes 15 to 18 us a file (docs/measurements.md). Helpers are started with
 * the first piece of work that is handed over. Without any (one processor, no memory) the walk does all by itself. */
#ifndef LS_CLONE_CREW_H
#define LS_CLONE_CREW_H

#include <pthread.h>
#include <stddef.h>

#include "clone_impl.h"

#define LS_CREW_HELPERS 3
#define LS_CREW_PIECES 32

/* A piece of work: names of files, each with its NUL, in a directory that stays until it is done. */
struct ls_crew_piece {
	void *directory;
	const char *names;
	size_t length;
};

typedef void ls_crew_run(struct ls_clone *clone, const struct ls_crew_piece *piece);

struct ls_crew {
	struct ls_clone_shared *shared;
	ls_crew_run *run; /* does a piece; called by several threads at once, each with a clone of its own */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a piece came or was done, or the end */
	struct ls_crew_piece pieces[LS_CREW_PIECES];
	size_t waiting, running;
	int ending;
	size_t helpers;
	pthread_t threads[LS_CREW_HELPERS];
};

void ls_crew_begin(struct ls_crew *crew, struct ls_clone_shared *shared, ls_crew_run *run);

/* Hand a piece over. Where enough are waiting already, one of them is done here first, with `clone`. */
void ls_crew_add(struct ls_crew *crew, struct ls_clone *clone, struct ls_crew_piece piece);

/* Do or wait for pieces until none is waiting or running. */
void ls_crew_finish(struct ls_crew *crew, struct ls_clone *clone);

/* End the helpers; nothing is waiting or running. */
void ls_crew_end(struct ls_crew *crew);

#endif
