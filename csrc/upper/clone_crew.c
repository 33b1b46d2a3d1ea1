#include "clone_crew.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>

void ls_crew_begin(struct ls_crew *crew, struct ls_clone_shared *shared, ls_crew_run *run)
{
	*crew = (struct ls_crew){.shared = shared, .run = run};
	pthread_mutex_init(&crew->lock, NULL);
	pthread_cond_init(&crew->changed, NULL);
}

/* Do the newest piece, the likeliest to be in the processor's cache. The lock is held, and given up meanwhile. */
static void work(struct ls_crew *crew, struct ls_clone *clone)
{
	struct ls_crew_piece piece = crew->pieces[--crew->waiting];

	crew->running++;
	pthread_mutex_unlock(&crew->lock);
	crew->run(clone, &piece);
	pthread_mutex_lock(&crew->lock);
	crew->running--;
	pthread_cond_broadcast(&crew->changed);
}

static void *help(void *argument)
{
	struct ls_crew *crew = argument;
	struct ls_error err;
	struct ls_clone clone = {.shared = crew->shared, .err = &err};

	clone.names = malloc(2 * LS_XATTRS_BYTES);
	if (!clone.names)
		return NULL; /* the others do it */
	clone.value = clone.names + LS_XATTRS_BYTES;
	pthread_mutex_lock(&crew->lock);
	while (!crew->ending) {
		if (crew->waiting)
			work(crew, &clone);
		else
			pthread_cond_wait(&crew->changed, &crew->lock);
	}
	pthread_mutex_unlock(&crew->lock);
	free(clone.names);
	return NULL;
}

static size_t wanted_helpers(void)
{
	cpu_set_t processors;
	size_t count = sched_getaffinity(0, sizeof(processors), &processors) ? 1 : (size_t)CPU_COUNT(&processors);

	return count - 1 < LS_CREW_HELPERS ? count - 1 : LS_CREW_HELPERS;
}

/* Signals are for the caller's threads. */
static void start_helpers(struct ls_crew *crew)
{
	size_t wanted = wanted_helpers();
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (crew->helpers < wanted && !pthread_create(&crew->threads[crew->helpers], NULL, help, crew))
		crew->helpers++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void ls_crew_add(struct ls_crew *crew, struct ls_clone *clone, struct ls_crew_piece piece)
{
	if (!crew->helpers)
		start_helpers(crew);
	pthread_mutex_lock(&crew->lock);
	while (crew->waiting == LS_CREW_PIECES)
		work(crew, clone);
	crew->pieces[crew->waiting++] = piece;
	pthread_cond_signal(&crew->changed);
	pthread_mutex_unlock(&crew->lock);
}

void ls_crew_finish(struct ls_crew *crew, struct ls_clone *clone)
{
	pthread_mutex_lock(&crew->lock);
	while (crew->waiting || crew->running) {
		if (crew->waiting)
			work(crew, clone);
		else
			pthread_cond_wait(&crew->changed, &crew->lock);
	}
	pthread_mutex_unlock(&crew->lock);
}

void ls_crew_end(struct ls_crew *crew)
{
	pthread_mutex_lock(&crew->lock);
	crew->ending = 1;
	pthread_cond_broadcast(&crew->changed);
	pthread_mutex_unlock(&crew->lock);
	for (size_t i = 0; i < crew->helpers; i++)
		pthread_join(crew->threads[i], NULL);
	pthread_cond_destroy(&crew->changed);
	pthread_mutex_destroy(&crew->lock);
}
