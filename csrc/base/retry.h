/* Calls that a signal may interrupt (EINTR), made again until none does. */
#ifndef LS_RETRY_H
#define LS_RETRY_H

#include <errno.h>
#include <unistd.h>

/* Of glibc; not every C library has it. */
#ifndef TEMP_FAILURE_RETRY
#define TEMP_FAILURE_RETRY(call)                                                                                       \
	__extension__({                                                                                                \
		__typeof__(call) result_;                                                                              \
		do                                                                                                     \
			result_ = (call);                                                                              \
		while (result_ == -1 && errno == EINTR);                                                               \
		result_;                                                                                               \
	})
#endif

#endif
