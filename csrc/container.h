/* The name of a container's directory. Private to overlay.c and removal.c. */
#ifndef LS_CONTAINER_H
#define LS_CONTAINER_H

#include "status.h"

/* LS_INVALID where `name` is no name of one directory: empty, too long, "." or "..", or a path. */
int ls_container_check_name(const char *name, struct ls_error *err);

#endif
