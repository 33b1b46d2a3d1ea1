/* The first process of a container in which no program of its own runs: it keeps the namespaces, and waits for what
 * others leave. */
#ifndef LS_KEEPER_H
#define LS_KEEPER_H

/* The whole of a program, of which this is the entry point: no C library, no stack but a page, 16 KiB of memory. setup.py
 * links it alone, as layerstore/_core/keeper.
 *
 * Processes whose parent has ended become its children, and are waited for. SIGTERM, SIGINT, SIGHUP or SIGQUIT end it: it
 * sends SIGTERM to all processes of its PID namespace, waits until there is none that it may signal, and exits with 0. With
 * it the kernel ends what is left. All other signals are passed over.
 *
 * Source: pid_namespaces(7), "The namespace init process". For x86-64 and AArch64; elsewhere there is no such program. */
void ls_keeper(void);

#endif
