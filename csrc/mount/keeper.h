/* The first process of a container in which no program of its own runs: it keeps the namespaces, and waits for what
 * others leave. With arguments it starts a program and is that one's init. */
#ifndef LS_KEEPER_H
#define LS_KEEPER_H

/* The whole of a program, of which this is the entry point: no C library, no stack but a page, 16 KiB of memory. setup.py
 * links it alone, as layerstore/_core/keeper.
 *
 * Processes whose parent has ended become its children, and are waited for. SIGTERM, SIGINT, SIGHUP or SIGQUIT end it: it
 * sends SIGTERM to all processes of its PID namespace, waits until there is none that it may signal, and exits with 0. With
 * it the kernel ends what is left. All other signals are passed over.
 *
 * KEEPER PROGRAM ARGUMENT... starts the program, which is looked for in the directories of PATH unless its name has a slash,
 * and sends it the signals that it gets itself, but for those that the kernel sends: those of a terminal reach the
 * program, too. It ends when the program has ended, with its exit status, 128 + N when signal N ended it, 127 where there
 * is no such program and 126 where it cannot be started.
 *
 * Source: pid_namespaces(7), "The namespace init process". For x86-64 and AArch64; elsewhere there is no such program. */
void ls_keeper(void);

#endif
