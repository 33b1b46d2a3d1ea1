/* Network namespaces (network_namespaces(7)). Thread-safe. */
#ifndef LS_NETWORK_H
#define LS_NETWORK_H

#include "base/status.h"

/* Make a network namespace with nothing but a loopback device that is down. It lasts as long as *fd, which is
 * close-on-exec, or a process in it. LS_UNSUPPORTED without the privilege. */
int ls_network_make(int *fd, struct ls_error *err);

#endif
