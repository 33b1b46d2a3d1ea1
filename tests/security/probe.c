/* Tries what a program in a container should not be able to do, one thing after the other, and tells of each whether it can.

   A line a thing: group, name, "allowed" or "refused", and why, between tabs. Refused are system calls that end with EPERM,
   EACCES or ENOSYS, or by a signal; any other error came from behind the check, and is "allowed". Of files, sockets and
   devices what counts is that they open.

   Each thing is tried in a child of its own, with arguments that do nothing where they are let through: an unknown file
   system to mount, a wrong magic number to reboot with, a name of a host that is too long. Linked statically, so that any
   image can hold it.

   Arguments, all of the form NAME=VALUE, tell what the host has, and are looked for from inside:
     ns.uts=LINK ...     where /proc/self/ns/uts and the others lead to on the host
     abstract=NAME       an abstract socket that listens there; port=N a TCP port of its 127.0.0.1
     pid=N               a process of it
     key=DESCRIPTION     a key in the keyring of the user that runs this; serial=N that key
     disk=MAJOR:MINOR    a block device
     processes=N         how many processes to try to have */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { TRIAL_MILLISECONDS = 20000, MAX_ENTRIES = 30000 };
enum { TOO_LONG = 65 }; /* for a name of a host */

static char **arguments;
static int result_fd; /* the end of the pipe that the child of a trial writes to */

/* Saying what came of a trial: these end its child. */

static _Noreturn void say(bool allowed, const char *format, ...)
{
	char text[2048];
	int n = snprintf(text, sizeof text, "%s\t", allowed ? "allowed" : "refused");
	va_list list;

	va_start(list, format);
	n += vsnprintf(text + n, sizeof text - (size_t)n, format, list);
	va_end(list);
	if (n >= (int)sizeof text)
		n = sizeof text - 1;
	_exit(write(result_fd, text, (size_t)n) == n ? 0 : 1);
}

static const char *why(void)
{
	const char *name = strerrorname_np(errno);
	return name == NULL ? "an unknown error" : name;
}

/* A system call: what is neither forbidden nor unknown came to the kernel's own code. */
static _Noreturn void say_call(long status)
{
	if (status >= 0)
		say(true, "%s", "");
	say(errno != EPERM && errno != EACCES && errno != ENOSYS, "%s", why());
}

/* Something that has to succeed to be of any use. */
static _Noreturn void say_done(long status)
{
	say(status >= 0, "%s", status >= 0 ? "" : why());
}

static const char *argument(const char *name)
{
	size_t length = strlen(name);

	for (char **one = arguments; *one != NULL; one++)
		if (strncmp(*one, name, length) == 0 && (*one)[length] == '=')
			return *one + length + 1;
	return NULL;
}

static const char *needed(const char *name)
{
	const char *value = argument(name);

	if (value == NULL)
		say(false, "not tried: no %s=", name);
	return value;
}

/* What a trial is. `run` looks at what it needs of the rest. */

struct trial {
	const char *group, *name;
	void (*run)(const struct trial *);
	const char *text;
	long number;
	long a[6];
};

static void try_call(const struct trial *t)
{
	say_call(syscall(t->number, t->a[0], t->a[1], t->a[2], t->a[3], t->a[4], t->a[5]));
}

/* The entry of 32-bit programs, whose numbers are others. Pointers have to be in the lowest 4 GiB: link without PIE. */
static void try_call_32(const struct trial *t)
{
#ifdef __x86_64__
	long status;

	__asm__ volatile("int $0x80"
	                 : "=a"(status)
	                 : "a"(t->number), "b"(t->a[0]), "c"(t->a[1]), "d"(t->a[2]), "S"(t->a[3]), "D"(t->a[4])
	                 : "r8", "r9", "r10", "r11", "memory");
	if ((int)status < 0 && (int)status > -4096) {
		errno = -(int)status;
		status = -1;
	}
	say_call(status);
#else
	(void)t;
	say(false, "not on this processor");
#endif
}

/* What calls are given. */

static char nothing[] = "nothing-of-that-name";
static char tree_root[] = "/";
static char buffer[4096];
static char key_type[] = "user", key_name[] = "layerstore-probe";
static union bpf_attr bpf_map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
static struct perf_event_attr perf_clock = {.type = PERF_TYPE_SOFTWARE,
                                            .size = sizeof(struct perf_event_attr),
                                            .config = PERF_COUNT_SW_TASK_CLOCK,
                                            .exclude_kernel = 1,
                                            .exclude_hv = 1};
static struct io_uring_params uring;
static struct clone_args plain_child = {.exit_signal = SIGCHLD};
static struct clone_args user_child = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
static struct timex wrong_tick = {.modes = ADJ_TICK, .tick = 1};
static uint32_t socketcall_vsock[] = {AF_VSOCK, SOCK_STREAM, 0};
static uint32_t socketcall_alg[] = {38, SOCK_SEQPACKET, 0};
static uint64_t no_attributes[4];
static uint64_t list_root[3] = {24, UINT64_MAX, 0};
static struct {
	unsigned int bytes;
	int type;
	unsigned char handle[8];
} some_handle = {8, 1, {1}};

/* System calls that need more than a line. */

static void try_clone(const struct trial *t)
{
	long pid = syscall(SYS_clone, t->number | SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		_exit(0);
	say_call(pid);
}

static void try_clone3(const struct trial *t)
{
	long pid = syscall(SYS_clone3, t->number ? &user_child : &plain_child, sizeof plain_child);

	if (pid == 0)
		_exit(0);
	say_call(pid);
}

static void try_unshare(const struct trial *t)
{
	say_call(unshare((int)t->number));
}

static void try_setns(const struct trial *t)
{
	int fd = open(t->text, O_RDONLY);

	if (fd < 0)
		say(false, "%s", why());
	say_call(setns(fd, 0));
}

/* Of the trial's own parent. */
static void try_ptrace(const struct trial *t)
{
	(void)t;
	say_call(ptrace(PTRACE_SEIZE, getppid(), 0, 0));
}

static void try_read_memory(const struct trial *t)
{
	struct iovec here = {buffer, 8}, there = {nothing, 8};

	(void)t;
	say_call(process_vm_readv(getppid(), &here, 1, &there, 1, 0));
}

static void try_kcmp(const struct trial *t)
{
	(void)t;
	say_call(syscall(SYS_kcmp, getpid(), getppid(), 0, 0, 0));
}

static void try_handle(const struct trial *t)
{
	int fd = open("/", O_RDONLY);

	(void)t;
	say_call(syscall(SYS_open_by_handle_at, fd, &some_handle, O_RDONLY));
}

static void try_syslog(const struct trial *t)
{
	(void)t;
	say_call(syscall(SYS_syslog, 3, buffer, 16));
}

static void try_priority(const struct trial *t)
{
	(void)t;
	say_call(setpriority(PRIO_PROCESS, 0, -5));
}

static void try_realtime(const struct trial *t)
{
	struct sched_param first = {.sched_priority = 1};

	(void)t;
	say_call(sched_setscheduler(0, SCHED_FIFO, &first));
}

static void try_limit(const struct trial *t)
{
	struct rlimit limit;

	(void)t;
	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		say(false, "%s", why());
	limit.rlim_max++;
	say_call(setrlimit(RLIMIT_NOFILE, &limit));
}

static void try_trusted_attribute(const struct trial *t)
{
	(void)t;
	if (mkdir("/tmp/probe-attribute", 0700) != 0 && errno != EEXIST)
		say(false, "mkdir: %s", why());
	int status = setxattr("/tmp/probe-attribute", "trusted.overlay.opaque", "y", 1, 0);
	int error = errno;
	rmdir("/tmp/probe-attribute");
	errno = error;
	say_call(status);
}

static void try_memory_map(const struct trial *t)
{
	(void)t;
	say_call(prctl(PR_SET_MM, PR_SET_MM_BRK, 0, 0, 0));
}

/* Sockets. */

static void try_socket(const struct trial *t)
{
	say_done(socket((int)t->a[0], (int)t->a[1], (int)t->a[2]));
}

/* Sets the flags of "lo" to what they are. */
static void try_interface(const struct trial *t)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	(void)t;
	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) != 0)
		say(false, "%s", why());
	say_call(ioctl(fd, SIOCSIFFLAGS, &request));
}

static void try_low_port(const struct trial *t)
{
	struct sockaddr_in address = {
	    .sin_family = AF_INET, .sin_port = htons(1), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	(void)t;
	if (fd < 0)
		say(false, "%s", why());
	say_call(bind(fd, (struct sockaddr *)&address, sizeof address));
}

/* Files: of /proc and /sys. */

static void try_read(const struct trial *t)
{
	int fd = open(t->text, O_RDONLY | O_NONBLOCK);

	if (fd < 0)
		say(false, "%s", why());
	DIR *directory = fdopendir(fd);
	if (directory == NULL) {
		ssize_t n = read(fd, buffer, 1);
		say(n > 0, "%s", n > 0 ? "" : n == 0 ? "empty" : why());
	}
	for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
		if (entry->d_name[0] != '.')
			say(true, "%s", "");
	say(false, "empty");
}

/* Opens, and does not write. */
static void try_open_to_write(const struct trial *t)
{
	say_done(open(t->text, O_WRONLY | O_NONBLOCK));
}

static void try_kernel_addresses(const struct trial *t)
{
	FILE *file = fopen("/proc/kallsyms", "r");
	unsigned long address = 0;

	(void)t;
	if (file == NULL)
		say(false, "%s", why());
	if (fscanf(file, "%lx", &address) != 1)
		say(false, "empty");
	say(address != 0, "%s", address ? "" : "all are 0");
}

/* The first file below a directory that opens for writing, of those with that name where there is one; ends the trial
   when it finds one. */
static void find_writable(int parent, const char *name, char *path, size_t length, const char *wanted, int *left)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);

	if (directory == NULL)
		return;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL && *left > 0;) {
		size_t more = strlen(entry->d_name) + 1;
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 || length + more >= 1024)
			continue;
		--*left;
		snprintf(path + length, 1024 - length, "/%s", entry->d_name);
		if (entry->d_type == DT_DIR)
			find_writable(dirfd(directory), entry->d_name, path, length + more, wanted, left);
		else if (entry->d_type == DT_REG && (wanted == NULL || strstr(wanted, entry->d_name) != NULL) &&
		         openat(dirfd(directory), entry->d_name, O_WRONLY | O_NONBLOCK) >= 0)
			say(true, "%s", path);
	}
	closedir(directory);
}

static void try_any_to_write(const struct trial *t)
{
	char path[1024];
	int left = MAX_ENTRIES;

	snprintf(path, sizeof path, "%s", t->text);
	find_writable(AT_FDCWD, t->text, path, strlen(path), (const char *)t->number, &left);
	say(false, "none");
}

/* A file that it was given for one use, opened for the other. */
static void try_given(const struct trial *t)
{
	struct stat status;

	if (stat(t->text, &status) != 0)
		say(false, "%s", why());
	if (!S_ISREG(status.st_mode))
		say(false, "no file");
	say_done(open(t->text, (int)t->number));
}

static void try_descriptors(const struct trial *t)
{
	char found[512] = "", target[256], link[64];

	(void)t;
	for (int fd = 3; fd < 4096; fd++) {
		if (fd == result_fd || fcntl(fd, F_GETFD) < 0)
			continue;
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(link, target, sizeof target - 1);
		target[n < 0 ? 0 : n] = 0;
		snprintf(found + strlen(found), sizeof found - strlen(found), "%s%d: %.100s", *found ? ", " : "", fd,
		         target);
	}
	say(*found != 0, "%s", *found ? found : "none");
}

/* Devices. */

static void try_mknod(const struct trial *t)
{
	int status = mknod("/tmp/probe-node", (mode_t)t->number | 0600, makedev((unsigned)t->a[0], (unsigned)t->a[1]));
	int error = errno;

	unlink("/tmp/probe-node");
	errno = error;
	say_call(status);
}

/* Opens a device by a node in /dev, or else one of its own making. That it is busy, or that there is no such device, is
   said by its driver: the open came there. */
static _Noreturn void say_device(const char *path, mode_t type, unsigned major_number, unsigned minor_number)
{
	char own[64];
	int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY);

	if (fd < 0 && errno == ENOENT) {
		snprintf(own, sizeof own, "/tmp/probe-%u-%u", major_number, minor_number);
		if (mknod(own, type | 0600, makedev(major_number, minor_number)) != 0)
			say(false, "mknod: %s", why());
		fd = open(own, O_RDONLY | O_NONBLOCK | O_NOCTTY);
		int error = errno;
		unlink(own);
		errno = error;
	}
	if (fd >= 0)
		say(true, "%s", "");
	say(errno == EBUSY || errno == ENXIO || errno == ENODEV, "%s", why());
}

static void try_device(const struct trial *t)
{
	say_device(t->text, (mode_t)t->number, (unsigned)t->a[0], (unsigned)t->a[1]);
}

static void try_disk(const struct trial *t)
{
	unsigned first, second;

	if (sscanf(needed(t->text), "%u:%u", &first, &second) != 2)
		say(false, "not tried: %s= has no numbers", t->text);
	say_device("/dev/probe-disk", S_IFBLK, first, second);
}

static void try_other_nodes(const struct trial *t)
{
	static const char *usual[] = {".",   "..",  "null",   "zero", "full",  "random", "urandom", "tty",  "ptmx",
	                              "pts", "shm", "mqueue", "fd",   "stdin", "stdout", "stderr",  "core", "console"};
	char found[512] = "";
	DIR *directory = opendir("/dev");

	(void)t;
	for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
		bool known = false;
		for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
			known = known || strcmp(usual[i], entry->d_name) == 0;
		if (!known)
			snprintf(found + strlen(found), sizeof found - strlen(found), "%s%.32s", *found ? ", " : "",
			         entry->d_name);
	}
	say(*found != 0, "%s", *found ? found : "none");
}

/* Control groups. */

static void try_mount(const struct trial *t)
{
	if (t->number != 0 && unshare((int)t->number) != 0)
		say(false, "unshare: %s", why());
	if (mkdir("/tmp/probe-mount", 0700) != 0 && errno != EEXIST)
		say(false, "mkdir: %s", why());
	int status = mount("none", "/tmp/probe-mount", t->text, MS_RDONLY, (const char *)t->a[0]);
	int error = errno;
	if (status == 0)
		umount2("/tmp/probe-mount", MNT_DETACH);
	rmdir("/tmp/probe-mount");
	errno = error;
	say_call(status);
}

static void try_place(const struct trial *t)
{
	FILE *file = fopen("/proc/self/cgroup", "r");
	char line[512];

	(void)t;
	if (file == NULL)
		say(false, "%s", why());
	while (fgets(line, sizeof line, file) != NULL) {
		char *path = strchr(line, '/');
		line[strcspn(line, "\n")] = 0;
		if (path != NULL && path[1] != 0)
			say(true, "%s", "");
	}
	say(false, "all are /");
}

/* The host. */

static void try_namespace(const struct trial *t)
{
	char name[32], path[64], own[128];

	snprintf(name, sizeof name, "ns.%s", t->text);
	const char *of_host = needed(name);
	snprintf(path, sizeof path, "/proc/self/ns/%s", t->text);
	ssize_t n = readlink(path, own, sizeof own - 1);
	if (n < 0)
		say(false, "%s", why());
	own[n] = 0;
	say(strcmp(own, of_host) == 0, "%s", "");
}

static void try_abstract(const struct trial *t)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const char *name = needed(t->text);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
	say_done(connect(fd, (struct sockaddr *)&address,
	                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))));
}

static void try_port(const struct trial *t)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((uint16_t)atoi(needed(t->text))),
	                              .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		say(false, "%s", why());
	say_done(connect(fd, (struct sockaddr *)&address, sizeof address));
}

static void try_signal(const struct trial *t)
{
	say_done(kill(atoi(needed(t->text)), 0));
}

static void try_ptrace_host(const struct trial *t)
{
	say_done(ptrace(PTRACE_SEIZE, atoi(needed(t->text)), 0, 0));
}

static void try_see(const struct trial *t)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%s/status", needed(t->text));
	say_done(open(path, O_RDONLY));
}

/* Who links a keyring into a session of his own possesses what is in it. */
static void possess_user_keyring(void)
{
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0)
		say(false, "a session: %s", why());
	if (syscall(SYS_keyctl, KEYCTL_LINK, KEY_SPEC_USER_KEYRING, KEY_SPEC_SESSION_KEYRING) < 0)
		say(false, "a link: %s", why());
}

static void try_key_search(const struct trial *t)
{
	possess_user_keyring();
	long key = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING, "user", needed(t->text), 0);

	if (key < 0)
		say(false, "%s", why());
	say_done(syscall(SYS_keyctl, KEYCTL_READ, key, buffer, sizeof buffer, 0));
}

static void try_key_read(const struct trial *t)
{
	possess_user_keyring();
	say_done(syscall(SYS_keyctl, KEYCTL_READ, atol(needed(t->text)), buffer, sizeof buffer, 0));
}

static void try_many(const struct trial *t)
{
	int wanted = atoi(needed(t->text)), made = 0, error = 0;
	pid_t *children = calloc((size_t)wanted, sizeof *children);
	int gate[2];

	if (children == NULL || pipe(gate) != 0)
		say(false, "%s", why());
	while (made < wanted) {
		pid_t pid = fork();
		if (pid < 0) {
			error = errno;
			break;
		}
		if (pid == 0) {
			/* Until the last one has closed the other end: nobody has to be found then. */
			close(gate[1]);
			if (read(gate[0], buffer, 1) < 0)
				_exit(1);
			_exit(0);
		}
		children[made++] = pid;
	}
	close(gate[1]);
	for (int i = 0; i < made; i++)
		waitpid(children[i], NULL, 0);
	errno = error;
	say(made == wanted, "%s", made == wanted ? "" : why());
}

/* Privileges. */

/* By number, which is where a word stands. */
static char capability_names[] =
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct "
    "sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap "
    "mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore";

static unsigned long long set_of(const char *name)
{
	FILE *file = fopen("/proc/self/status", "r");
	unsigned long long bits = 0;
	char line[256];
	size_t length = strlen(name);

	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, name, length) == 0 && line[length] == ':')
			bits = strtoull(line + length + 1, NULL, 16);
	return bits;
}

/* In the bounding set a program gains it from a file with capabilities or, as root, by execve(2). */
static void try_capability(const struct trial *t)
{
	unsigned long long bit = 1ULL << t->number;

	if (set_of("CapPrm") & bit)
		say(true, "has it");
	say((set_of("CapBnd") & bit) != 0, "%s", set_of("CapBnd") & bit ? "may gain it" : "never");
}

static void try_set(const struct trial *t)
{
	unsigned long long bits = set_of(t->text);

	say(bits != 0, "%llx", bits);
}

static void try_no_filter(const struct trial *t)
{
	(void)t;
	say(prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 0, "%s", "");
}

static void try_new_privileges(const struct trial *t)
{
	(void)t;
	say(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "%s", "");
}

static void try_set_user_id(const struct trial *t)
{
	if (access(t->text, X_OK) != 0)
		say(false, "not tried: no %s", t->text);
	pid_t pid = fork();
	if (pid == 0) {
		execl(t->text, t->text, "--effective-user", NULL);
		_exit(2);
	}
	int status;
	waitpid(pid, &status, 0);
	say(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s", "");
}

/* All of them. */

/* clang-format off */
#define P(x) ((long)(x))
#define CALL(name, number, ...) {"system calls", name, try_call, NULL, number, {__VA_ARGS__}}
#define CALL_32(name, number, ...) {"system calls", name " by int 0x80", try_call_32, NULL, number, {__VA_ARGS__}}
#define OTHER(name, function, text, number) {"system calls", name, function, text, number, {0}}
#define UNSHARE(kind, flag) {"namespaces of its own", "unshare: " kind, try_unshare, NULL, flag, {0}}
#define SHARED(kind) {"the host's namespaces", kind, try_namespace, kind, 0, {0}}
#define SOCKET(name, ...) {"sockets", name, try_socket, NULL, 0, {__VA_ARGS__}}
#define READ(path) {"files of the kernel, to read", path, try_read, path, 0, {0}}
#define WRITE(path) {"files of the kernel, to write", path, try_open_to_write, path, 0, {0}}
#define WRITE_BELOW(path) {"files of the kernel, to write", "any below " path, try_any_to_write, path, 0, {0}}
#define DEVICE(path, type, ...) {"devices", path, try_device, path, type, {__VA_ARGS__}}
#define HOST(name, function, text) {"the host", name, function, text, 0, {0}}
#define OWN(name, function, text) {"privileges", name, function, text, 0, {0}}
#define MOUNT(name, flags, type, data) {"control groups", name, try_mount, type, flags, {P(data)}}
/* clang-format on */

#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

static const struct trial trials[] = {
    CALL("mount", SYS_mount, P(nothing), P(tree_root), P(nothing), 0, 0),
    CALL("umount2", SYS_umount2, P(tree_root), MNT_EXPIRE),
    CALL("pivot_root", SYS_pivot_root, P(tree_root), P(tree_root)),
    CALL("chroot", SYS_chroot, P(tree_root)),
    CALL("fsopen", SYS_fsopen, P("tmpfs"), 0),
    CALL("fspick", SYS_fspick, AT_FDCWD, P(tree_root), 0),
    CALL("fsmount", SYS_fsmount, -1, 0, 0),
    CALL("open_tree to clone", SYS_open_tree, AT_FDCWD, P(tree_root), 1),
    CALL("move_mount", SYS_move_mount, -1, P(""), -1, P(""), 0x44),
    CALL("mount_setattr", SYS_mount_setattr, AT_FDCWD, P(tree_root), 0, P(no_attributes), sizeof no_attributes),
    CALL("listmount", 458, P(list_root), P(buffer), 1, 0),
    CALL("quotactl", SYS_quotactl, 0x800001 << 8, 0, 0, 0),
    CALL("swapon", SYS_swapon, P(nothing), 0),
    CALL("swapoff", SYS_swapoff, P(nothing)),
    CALL("acct", SYS_acct, P(tree_root)),
    CALL("name_to_handle_at", SYS_name_to_handle_at, AT_FDCWD, P(tree_root), P(buffer), P(buffer + 1024), 0),
    OTHER("open_by_handle_at", try_handle, NULL, 0),
    CALL("fanotify_init", SYS_fanotify_init, 0x200, 0),
    OTHER("setxattr of trusted.overlay.opaque", try_trusted_attribute, NULL, 0),
    OTHER("clone: user namespace", try_clone, NULL, CLONE_NEWUSER),
    OTHER("clone: mount namespace", try_clone, NULL, CLONE_NEWNS),
    OTHER("clone3", try_clone3, NULL, 0),
    OTHER("clone3: user namespace", try_clone3, NULL, 1),
    OTHER("setns: its own uts namespace", try_setns, "/proc/self/ns/uts", 0),
    CALL("keyctl", SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0),
    CALL("add_key", SYS_add_key, P(key_type), P(key_name), P(nothing), 1, KEY_SPEC_PROCESS_KEYRING),
    CALL("request_key", SYS_request_key, P(key_type), P(nothing), 0, 0),
    CALL("bpf: a map", SYS_bpf, BPF_MAP_CREATE, P(&bpf_map), sizeof bpf_map),
    CALL("perf_event_open: its own time", SYS_perf_event_open, P(&perf_clock), 0, -1, -1, 0),
    CALL("io_uring_setup", 425, 1, P(&uring)),
    CALL("io_uring_enter", 426, -1, 0, 0, 0, 0, 0),
    CALL("io_uring_register", 427, -1, 0, 0, 0),
    CALL("userfaultfd: user mode only", SYS_userfaultfd, 1),
    OTHER("kcmp", try_kcmp, NULL, 0),
    OTHER("ptrace of a process of its own", try_ptrace, NULL, 0),
    OTHER("process_vm_readv of a process of its own", try_read_memory, NULL, 0),
    CALL("pidfd_getfd", 438, -1, 0, 0),
    CALL("process_madvise", 440, -1, 0, 0, 0, 0),
    CALL("kexec_load", SYS_kexec_load, 0, 0, 0, 0),
    CALL("kexec_file_load", SYS_kexec_file_load, -1, -1, 0, 0, 0),
    CALL("init_module", SYS_init_module, 0, 0, P("")),
    CALL("finit_module", SYS_finit_module, -1, P(""), 0),
    CALL("delete_module", SYS_delete_module, P(nothing), O_NONBLOCK),
    CALL("reboot", SYS_reboot, 0, 0, 0, 0),
    CALL("sethostname", SYS_sethostname, P(nothing), TOO_LONG),
    CALL("setdomainname", SYS_setdomainname, P(nothing), TOO_LONG),
    CALL("settimeofday", SYS_settimeofday, 0, 0),
    CALL("adjtimex: the length of a tick", SYS_adjtimex, P(&wrong_tick)),
    CALL("clock_adjtime: the length of a tick", SYS_clock_adjtime, 0, P(&wrong_tick)),
#ifdef __x86_64__
    CALL("iopl", SYS_iopl, 3),
    CALL("ioperm", SYS_ioperm, 0x80, 1, 1),
    CALL("modify_ldt", SYS_modify_ldt, 0, P(buffer), 16),
    CALL("uselib", SYS_uselib, P(nothing)),
    CALL("sysfs", SYS_sysfs, 3),
    CALL("ustat", SYS_ustat, 0, P(buffer)),
#endif
    CALL("lookup_dcookie", SYS_lookup_dcookie, 0, 0, P(buffer), sizeof buffer),
    CALL("nfsservctl", SYS_nfsservctl, 0, 0, 0),
    CALL("mbind", SYS_mbind, 0, 0, 0, 0, 0, 0),
    CALL("set_mempolicy", SYS_set_mempolicy, 0, 0, 0),
    CALL("get_mempolicy", SYS_get_mempolicy, P(buffer), 0, 0, 0, 0),
    CALL("move_pages", SYS_move_pages, 0, 0, 0, 0, 0, 0),
    CALL("migrate_pages", SYS_migrate_pages, 0, 0, 0, 0),
    CALL("personality: none", SYS_personality, 0xffffffff),
    CALL("personality: addresses that are not random", SYS_personality, 0x0040000),
    OTHER("syslog: the kernel's messages", try_syslog, NULL, 0),
    CALL("vhangup", SYS_vhangup, 0),
    OTHER("setpriority: below 0", try_priority, NULL, 0),
    OTHER("sched_setscheduler: real time", try_realtime, NULL, 0),
    CALL("ioprio_set: real time", SYS_ioprio_set, 1, 0, (1 << 13) | 4),
    OTHER("setrlimit: a hard limit raised", try_limit, NULL, 0),
    OTHER("prctl: PR_SET_MM", try_memory_map, NULL, 0),
    CALL("memfd_secret", 447, 0),
    CALL("landlock_create_ruleset", 444, 0, 0, 1),
    CALL("quotactl_fd", 443, -1, 0, 0, 0),
    CALL("cachestat", 451, -1, P(buffer), P(buffer), 0),
    CALL("lsm_list_modules", 461, P(buffer), P(buffer), 0),
    CALL("set_mempolicy_home_node", 450, 0, 0, 0, 0),
    CALL("a number of x32", 0x40000000 | SYS_getpid, 0),
    CALL_32("mount", 21, P(nothing), P(tree_root), P(nothing), 0, 0),
    CALL_32("unshare: user namespace", 310, CLONE_NEWUSER),
    CALL_32("add_key", 286, P(key_type), P(key_name), P(nothing), 1, KEY_SPEC_PROCESS_KEYRING),
    CALL_32("bpf: a map", 357, BPF_MAP_CREATE, P(&bpf_map), sizeof bpf_map),
    CALL_32("io_uring_setup", 425, 1, P(&uring)),
    CALL_32("vm86", 166, -1, 0),
    CALL_32("socketcall: AF_VSOCK", 102, 1, P(socketcall_vsock)),
    CALL_32("socketcall: AF_ALG", 102, 1, P(socketcall_alg)),

    UNSHARE("cgroup", CLONE_NEWCGROUP),
    UNSHARE("ipc", CLONE_NEWIPC),
    UNSHARE("mnt", CLONE_NEWNS),
    UNSHARE("net", CLONE_NEWNET),
    UNSHARE("pid", CLONE_NEWPID),
    UNSHARE("time", CLONE_NEWTIME),
    UNSHARE("user", CLONE_NEWUSER),
    UNSHARE("uts", CLONE_NEWUTS),

    SHARED("cgroup"),
    SHARED("ipc"),
    SHARED("mnt"),
    SHARED("net"),
    SHARED("pid"),
    SHARED("time"),
    SHARED("user"),
    SHARED("uts"),

    SOCKET("AF_INET", AF_INET, SOCK_STREAM, 0),
    SOCKET("AF_INET raw: ICMP", AF_INET, SOCK_RAW, IPPROTO_ICMP),
    SOCKET("AF_PACKET raw", AF_PACKET, SOCK_RAW, 0),
    SOCKET("AF_NETLINK: routes", AF_NETLINK, SOCK_RAW, NETLINK_ROUTE),
    SOCKET("AF_NETLINK: audit", AF_NETLINK, SOCK_RAW, NETLINK_AUDIT),
    SOCKET("AF_NETLINK: kernel's events", AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT),
    SOCKET("AF_VSOCK", AF_VSOCK, SOCK_STREAM, 0),
    SOCKET("AF_ALG", AF_ALG, SOCK_SEQPACKET, 0),
    SOCKET("AF_KEY", AF_KEY, SOCK_RAW, 2),
    SOCKET("AF_TIPC", AF_TIPC, SOCK_SEQPACKET, 0),
    SOCKET("AF_BLUETOOTH", AF_BLUETOOTH, SOCK_RAW, 1),
    SOCKET("AF_RDS", AF_RDS, SOCK_SEQPACKET, 0),
    {"sockets", "the flags of an interface", try_interface, NULL, 0, {0}},
    {"sockets", "a port below 1024", try_low_port, NULL, 0, {0}},

    READ("/proc/acpi"),
    READ("/proc/asound"),
    READ("/proc/bus"),
    READ("/proc/cmdline"),
    READ("/proc/interrupts"),
    READ("/proc/kcore"),
    READ("/proc/keys"),
    READ("/proc/key-users"),
    READ("/proc/kmsg"),
    READ("/proc/kpagecount"),
    READ("/proc/latency_stats"),
    READ("/proc/partitions"),
    READ("/proc/sched_debug"),
    READ("/proc/scsi"),
    READ("/proc/slabinfo"),
    READ("/proc/sysvipc"),
    READ("/proc/timer_list"),
    READ("/proc/timer_stats"),
    READ("/proc/vmallocinfo"),
    {"files of the kernel, to read", "addresses in /proc/kallsyms", try_kernel_addresses, NULL, 0, {0}},
    READ("/sys/devices/system/cpu/cpu0/thermal_throttle"),
    READ("/sys/devices/virtual/powercap"),
    READ("/sys/firmware"),
    READ("/sys/fs/bpf"),
    READ("/sys/kernel/debug"),
    READ("/sys/kernel/notes"),
    READ("/sys/kernel/security"),
    READ("/sys/kernel/tracing"),

    WRITE("/proc/sysrq-trigger"),
    WRITE("/proc/sys/kernel/core_pattern"),
    WRITE("/proc/sys/kernel/hostname"),
    WRITE("/proc/sys/kernel/modprobe"),
    WRITE("/proc/sys/kernel/ns_last_pid"),
    WRITE("/proc/sys/net/ipv4/ip_forward"),
    WRITE("/proc/sys/vm/drop_caches"),
    WRITE("/proc/self/oom_score_adj"),
    WRITE("/proc/1/uid_map"),
    WRITE_BELOW("/proc/sys"),
    WRITE_BELOW("/proc/bus"),
    WRITE_BELOW("/proc/fs"),
    WRITE_BELOW("/proc/irq"),
    WRITE_BELOW("/sys"),

    {"devices", "mknod of a character device", try_mknod, NULL, S_IFCHR, {1, 3}},
    {"devices", "mknod of a block device", try_mknod, NULL, S_IFBLK, {7, 0}},
    {"devices", "a disk of the host", try_disk, "disk", 0, {0}},
    DEVICE("/dev/null", S_IFCHR, 1, 3),
    DEVICE("/dev/zero", S_IFCHR, 1, 5),
    DEVICE("/dev/full", S_IFCHR, 1, 7),
    DEVICE("/dev/random", S_IFCHR, 1, 8),
    DEVICE("/dev/urandom", S_IFCHR, 1, 9),
    DEVICE("/dev/tty", S_IFCHR, 5, 0),
    DEVICE("/dev/ptmx", S_IFCHR, 5, 2),
    DEVICE("/dev/mem", S_IFCHR, 1, 1),
    DEVICE("/dev/port", S_IFCHR, 1, 4),
    DEVICE("/dev/kmsg", S_IFCHR, 1, 11),
    DEVICE("/dev/tty0", S_IFCHR, 4, 0),
    DEVICE("/dev/ttyS0", S_IFCHR, 4, 64),
    DEVICE("/dev/console", S_IFCHR, 5, 1),
    DEVICE("/dev/loop0", S_IFBLK, 7, 0),
    DEVICE("/dev/loop-control", S_IFCHR, 10, 237),
    DEVICE("/dev/mapper/control", S_IFCHR, 10, 236),
    DEVICE("/dev/net/tun", S_IFCHR, 10, 200),
    DEVICE("/dev/fuse", S_IFCHR, 10, 229),
    DEVICE("/dev/kvm", S_IFCHR, 10, 232),
    DEVICE("/dev/vhost-net", S_IFCHR, 10, 238),
    DEVICE("/dev/btrfs-control", S_IFCHR, 10, 234),
    DEVICE("/dev/autofs", S_IFCHR, 10, 235),
    DEVICE("/dev/hwrng", S_IFCHR, 10, 183),
    DEVICE("/dev/nvram", S_IFCHR, 10, 144),
    DEVICE("/dev/uinput", S_IFCHR, 10, 223),
    DEVICE("/dev/cpu/0/msr", S_IFCHR, 202, 0),
    DEVICE("/dev/sda", S_IFBLK, 8, 0),
    {"devices", "nodes in /dev besides the usual ones", try_other_nodes, NULL, 0, {0}},

    MOUNT("mount of cgroup2", 0, "cgroup2", NULL),
    MOUNT("mount of cgroup", 0, "cgroup", "none,name=layerstore-probe"),
    MOUNT("mount of cgroup2 in a user namespace", CLONE_NEWUSER | CLONE_NEWNS, "cgroup2", NULL),
    MOUNT("mount of cgroup2 in user and cgroup namespaces", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP, "cgroup2",
          NULL),
    MOUNT("mount of proc in a user namespace", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID, "proc", NULL),
    MOUNT("mount of tmpfs in a user namespace", CLONE_NEWUSER | CLONE_NEWNS, "tmpfs", NULL),
    {"control groups",
     "a cgroup.procs, tasks or cgroup.kill to write",
     try_any_to_write,
     "/sys/fs/cgroup",
     P("cgroup.procs tasks cgroup.kill"),
     {0}},
    {"control groups", "its place among the host's groups", try_place, NULL, 0, {0}},

    HOST("an abstract socket", try_abstract, "abstract"),
    HOST("a port of 127.0.0.1", try_port, "port"),
    HOST("sees a process in /proc", try_see, "pid"),
    HOST("a signal to a process", try_signal, "pid"),
    HOST("ptrace of a process", try_ptrace_host, "pid"),
    HOST("a key of the user's keyring, by search", try_key_search, "key"),
    HOST("a key of the user's keyring, by number", try_key_read, "serial"),
    {"the host", "the file that is its standard input, to write", try_given, "/proc/self/fd/0", O_WRONLY, {0}},
    {"the host", "the file that is its standard output, to read", try_given, "/proc/self/fd/1", O_RDONLY, {0}},
    HOST("descriptors above 2", try_descriptors, NULL),
    HOST("more than 2,100 processes", try_many, "processes"),

    OWN("no seccomp filter", try_no_filter, NULL),
    OWN("execve gives privileges (no_new_privs is not set)", try_new_privileges, NULL),
    OWN("a set-user-ID program is root", try_set_user_id, "/bin/probe-as-root"),
    OWN("capabilities that execve keeps (inheritable)", try_set, "CapInh"),
    OWN("capabilities that execve gives any program (ambient)", try_set, "CapAmb"),
};

/* Runs a trial in a child and prints its line. */
static void attempt(const struct trial *t)
{
	int ends[2];
	char text[2100];
	size_t length = 0;

	if (pipe2(ends, O_CLOEXEC) != 0) {
		perror("pipe2");
		exit(2);
	}
	fflush(stdout);
	pid_t pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(2);
	}
	if (pid == 0) {
		close(ends[0]);
		result_fd = ends[1];
		setsid(); /* no terminal to hang up, and one group to end */
		t->run(t);
		_exit(3);
	}
	close(ends[1]);
	struct pollfd ready = {.fd = ends[0], .events = POLLIN};
	bool in_time = poll(&ready, 1, TRIAL_MILLISECONDS) > 0;
	ssize_t n;
	while (in_time && length < sizeof text - 1 && (n = read(ends[0], text + length, sizeof text - 1 - length)) > 0)
		length += (size_t)n;
	text[length] = 0;
	close(ends[0]);
	if (!in_time)
		kill(-pid, SIGKILL);
	int status = 0;
	waitpid(pid, &status, 0);
	if (!in_time)
		snprintf(text, sizeof text, "allowed\tnot back in time");
	else if (WIFSIGNALED(status))
		snprintf(text, sizeof text, "refused\tSIG%s", sigabbrev_np(WTERMSIG(status)));
	else if (length == 0)
		snprintf(text, sizeof text, "refused\tended with %d", WEXITSTATUS(status));
	printf("%s\t%s\t%s\n", t->group, t->name, text);
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--effective-user") == 0)
		return geteuid() == 0 ? 0 : 1;
	arguments = argv + 1;
	for (size_t i = 0; i < sizeof trials / sizeof *trials; i++)
		attempt(&trials[i]);
	long number = 0;
	for (char *name = strtok(capability_names, " "); name != NULL; name = strtok(NULL, " ")) {
		struct trial t = {"capabilities", name, try_capability, NULL, number++, {0}};
		attempt(&t);
	}
	return fflush(stdout) == 0 ? 0 : 2;
}
