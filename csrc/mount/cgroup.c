#include "cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/mount.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fscontext.h"

#define START_INSTRUCTIONS 11
#define RULE_INSTRUCTIONS 10
#define END_INSTRUCTIONS 2
#define MASK_BITS 32
#define TYPE_BITS 16 /* of access_type: the type of the device is below, the access asked for above */

enum {
	RESULT = BPF_REG_0,
	CONTEXT = BPF_REG_1,
	DEVICE = BPF_REG_2, /* major number and type in one, so that one comparison finds both */
	ACCESS = BPF_REG_3,
	MINOR = BPF_REG_4,
	SCRATCH = BPF_REG_5,
};

struct program {
	struct bpf_insn *instructions;
	size_t length;
};

int ls_cgroup_open(int *fd, struct ls_error *err)
{
	struct ls_fscontext context = {.fd = -1, .type = "cgroup2", .what = "the control groups", .subject = "cgroup2"};
	int mount_fd, status = ls_fscontext_open(&context, err);

	if (!status)
		status = ls_fscontext_create(&context, err);
	if (!status) {
		mount_fd = (int)syscall(SYS_fsmount, context.fd, FSMOUNT_CLOEXEC,
		                        MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
		*fd = mount_fd < 0 ? -1 : openat(mount_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (*fd < 0)
			status = ls_fail_errno(err, "cannot mount the control groups (cgroup2)");
		if (mount_fd >= 0)
			close(mount_fd);
	}
	ls_fscontext_close(&context);
	return status;
}

static struct bpf_insn *add(struct program *program, int code, int target, int source, int32_t value)
{
	struct bpf_insn *instruction = &program->instructions[program->length++];

	*instruction = (struct bpf_insn){
	    .code = (uint8_t)code, .dst_reg = (uint8_t)target, .src_reg = (uint8_t)source, .imm = value};
	return instruction;
}

static void load_field(struct program *program, int target, size_t offset)
{
	add(program, BPF_LDX | BPF_MEM | BPF_W, target, CONTEXT, 0)->off = (int16_t)offset;
}

static void begin(struct program *program)
{
	load_field(program, ACCESS, offsetof(struct bpf_cgroup_dev_ctx, access_type));
	load_field(program, DEVICE, offsetof(struct bpf_cgroup_dev_ctx, major));
	load_field(program, MINOR, offsetof(struct bpf_cgroup_dev_ctx, minor));
	add(program, BPF_ALU | BPF_LSH | BPF_K, DEVICE, 0, TYPE_BITS);
	add(program, BPF_ALU | BPF_MOV | BPF_X, SCRATCH, ACCESS, 0);
	add(program, BPF_ALU | BPF_AND | BPF_K, SCRATCH, 0, (1 << TYPE_BITS) - 1);
	add(program, BPF_ALU | BPF_OR | BPF_X, DEVICE, SCRATCH, 0);
	add(program, BPF_ALU | BPF_RSH | BPF_K, ACCESS, 0, TYPE_BITS);
	/* To make a device file, and to give one of a lower layer a new name or mode, which overlayfs copies up by mknod(2),
	 * is a matter of CAP_MKNOD alone: it opens nothing. */
	add(program, BPF_JMP | BPF_JNE | BPF_K, ACCESS, 0, BPF_DEVCG_ACC_MKNOD)->off = 2;
	add(program, BPF_ALU64 | BPF_MOV | BPF_K, RESULT, 0, 1);
	add(program, BPF_JMP | BPF_EXIT, 0, 0, 0);
}

static int32_t device_of(const struct ls_device_rule *rule)
{
	return (int32_t)(rule->major << TYPE_BITS | (rule->block ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR));
}

/* How many rules from the first on differ in a small minor number only, and so need but one look at a mask of those. */
static size_t alike(const struct ls_device_rule *rules, size_t n)
{
	size_t count = 0;

	if (rules[0].any_minor || rules[0].minor >= MASK_BITS)
		return 1;
	while (count < n && !rules[count].any_minor && rules[count].minor < MASK_BITS &&
	       device_of(&rules[count]) == device_of(&rules[0]) && rules[count].access == rules[0].access)
		count++;
	return count;
}

static void compare_minor(struct program *program, const struct ls_device_rule *rules, size_t n)
{
	uint32_t mask = 0;

	if (n == 1) {
		add(program, BPF_JMP | BPF_JNE | BPF_K, MINOR, 0, (int32_t)rules->minor);
		return;
	}
	for (size_t i = 0; i < n; i++)
		mask |= (uint32_t)1 << rules[i].minor;
	add(program, BPF_JMP | BPF_JGT | BPF_K, MINOR, 0, MASK_BITS - 1);
	add(program, BPF_ALU | BPF_MOV | BPF_K, SCRATCH, 0, (int32_t)mask);
	add(program, BPF_ALU | BPF_RSH | BPF_X, SCRATCH, MINOR, 0);
	add(program, BPF_ALU | BPF_AND | BPF_K, SCRATCH, 0, 1);
	add(program, BPF_JMP | BPF_JEQ | BPF_K, SCRATCH, 0, 0);
}

/* Rules that are alike: what matches none of them jumps past the end of this, where the next ones begin. */
static void allow(struct program *program, const struct ls_device_rule *rules, size_t n)
{
	size_t start = program->length;

	add(program, BPF_JMP | BPF_JNE | BPF_K, DEVICE, 0, device_of(rules));
	if (!rules->any_minor)
		compare_minor(program, rules, n);
	if (rules->access != LS_DEVICE_ALL) {
		add(program, BPF_ALU | BPF_MOV | BPF_X, SCRATCH, ACCESS, 0);
		add(program, BPF_ALU | BPF_AND | BPF_K, SCRATCH, 0, (int32_t)(LS_DEVICE_ALL & ~rules->access));
		add(program, BPF_JMP | BPF_JNE | BPF_K, SCRATCH, 0, 0);
	}
	add(program, BPF_ALU64 | BPF_MOV | BPF_K, RESULT, 0, 1);
	add(program, BPF_JMP | BPF_EXIT, 0, 0, 0);
	for (size_t i = start; i < program->length; i++)
		if (BPF_CLASS(program->instructions[i].code) == BPF_JMP &&
		    BPF_OP(program->instructions[i].code) != BPF_EXIT)
			program->instructions[i].off = (int16_t)(program->length - i - 1);
}

static int refuse(const char *step, struct ls_error *err)
{
	if (errno == EPERM || errno == ENOSYS || errno == EINVAL)
		return ls_fail(err, LS_UNSUPPORTED,
		               "cannot %s a control group: it needs CAP_SYS_ADMIN, and a kernel with CONFIG_CGROUP_BPF "
		               "(%s)",
		               step, strerror(errno));
	return ls_fail_errno(err, "cannot %s a control group", step);
}

static int attach(int group_fd, const struct program *program, struct ls_error *err)
{
	static const char license[] = "GPL";
	union bpf_attr load = {0}, attachment = {0};
	int fd, status = LS_OK;

	load.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
	load.insns = (uint64_t)(uintptr_t)program->instructions;
	load.insn_cnt = (uint32_t)program->length;
	load.license = (uint64_t)(uintptr_t)license;
	fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof(load));
	if (fd < 0)
		return refuse("load the device rules of", err);
	attachment.target_fd = (uint32_t)group_fd;
	attachment.attach_bpf_fd = (uint32_t)fd;
	attachment.attach_type = BPF_CGROUP_DEVICE;
	attachment.attach_flags = BPF_F_ALLOW_MULTI;
	if (syscall(SYS_bpf, BPF_PROG_ATTACH, &attachment, sizeof(attachment)))
		status = refuse("attach the device rules of", err);
	close(fd);
	return status;
}

int ls_cgroup_allow_devices(int group_fd, const struct ls_device_rule *rules, size_t n, struct ls_error *err)
{
	struct program program = {0};
	int status;

	program.instructions =
	    calloc(START_INSTRUCTIONS + n * RULE_INSTRUCTIONS + END_INSTRUCTIONS, sizeof(struct bpf_insn));
	if (!program.instructions)
		return ls_fail(err, LS_NO_MEMORY, "out of memory for %zu device rules", n);
	begin(&program);
	while (n) {
		size_t count = alike(rules, n);

		allow(&program, rules, count);
		rules += count;
		n -= count;
	}
	add(&program, BPF_ALU64 | BPF_MOV | BPF_K, RESULT, 0, 0);
	add(&program, BPF_JMP | BPF_EXIT, 0, 0, 0);
	status = attach(group_fd, &program, err);
	free(program.instructions);
	return status;
}
