/* The program that watches one container whose starter may go: it starts the runtime, keeps what the container prints, and
 * its end. */
#ifndef LS_MONITOR_H
#define LS_MONITOR_H

/* The whole of a program, of which this is the entry point: no C library, a session of its own. setup.py links it alone, as
 * layerstore/_core/monitor. It is called as
 *
 *   monitor MAX_BYTES FDS HIDE RUNTIME ARG... "" [PROGRAM ARG...]
 *
 * in the bundle's directory, with descriptors 0 to 2 that lead nowhere, and these below FDS, each of which may be missing
 * but for the first two; all others are closed:
 *
 *   3  a pipe or socket for one line, once the runtime has ended: its exit status and the process id of the container
 *   4  the record (below), which it has alone, with its first lines written
 *   5  the runtime's program, to be executed instead of RUNTIME's path
 *   6  a file of which the text is added to the record at the end (memory.events)
 *   7  the directory of a control group that the runtime starts in
 *   8  held until the runtime has ended, as 7 and 9 are
 *   9 and above: files "tasks" of control groups of version 1, which it starts in
 *
 * An empty directory covers HIDE (none where that is empty) in a mount namespace of the runtime's. The runtime has to
 * leave the container running, a child that becomes the monitor's (PR_SET_CHILD_SUBREAPER), and to write its process id to
 * the file "pid", which is removed. Where it fails the monitor ends. Else "record.new" becomes "record", with two lines
 * more:
 *
 *   monitor <process id>
 *   started <seconds since 1970, with nine decimals>
 *
 * and what the container prints is added to the file "log", in the text format of container logs of Kubernetes' runtimes
 * (CRI: design-proposals-archive, node/kubelet-cri-logging.md): "<RFC 3339, nanoseconds> stdout|stderr F|P <text>". Before
 * it has more than MAX_BYTES (16 KiB at least) it is renamed to "log.1" and begun anew. What cannot be written is dropped, and its bytes
 * counted, so that the container goes on. After the container's end the record gets more lines, the last one last:
 *
 *   lost <bytes>                                 where any were dropped
 *   what descriptor 6 has
 *   exited <status, 128 + N after signal N> <seconds>     where nobody else has waited for it
 *
 * Then PROGRAM takes the monitor's place, if one is given, and has descriptor 4; also where the runtime fails and nobody reads descriptor 3
 * any more. SIGTERM ends the monitor; as when it is killed, the container's next output gives it SIGPIPE.
 *
 * For x86-64 and AArch64; elsewhere there is no such program. */
void ls_monitor(void);

#endif
