/* The bytes of an EROFS image, as far as we write them. Source: Documentation/filesystems/erofs.rst and
 * fs/erofs/erofs_fs.h of Linux 6.12. Little-endian, and so is every machine that we build for. docs/format/erofs.md
 * says which of it we use and why. */
#ifndef LS_EROFS_FORMAT_H
#define LS_EROFS_FORMAT_H

#include <stddef.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "structures are written as they are in memory");

#define EROFS_MAGIC 0xe0f5e1e2u
#define EROFS_SUPER_OFFSET 1024u
#define EROFS_NID_BYTES 32u /* an inode's number is its position in these units */
#define EROFS_NAME_BYTES 255u
#define EROFS_SYMLINK_BYTES 4095u /* PATH_MAX less the zero byte */
#define EROFS_CHUNK_SHIFT_MAX 31u /* a chunk is at most 2^31 blocks */

enum erofs_compat {
	EROFS_COMPAT_CHECKSUM = 1,
	EROFS_COMPAT_MTIME = 2,        /* the time in an inode is its mtime */
	EROFS_COMPAT_XATTR_FILTER = 4, /* h_name_filter is filled */
};

enum erofs_incompat {
	EROFS_INCOMPAT_CHUNKS = 4,
	EROFS_INCOMPAT_DEVICES = 8,
};

struct erofs_super {
	uint32_t magic;
	uint32_t checksum;
	uint32_t compat;
	uint8_t block_bits;
	uint8_t extension_slots;
	uint16_t root_nid;
	uint64_t inodes;
	uint64_t build_seconds;
	uint32_t build_nanoseconds;
	uint32_t blocks;
	uint32_t meta_block;  /* inode numbers count from here */
	uint32_t xattr_block; /* shared xattr numbers count from here */
	uint8_t uuid[16];
	uint8_t volume_name[16];
	uint32_t incompat;
	uint16_t compression;
	uint16_t devices;     /* besides the image itself */
	uint16_t device_slot; /* position of the device table, in units of its entries */
	uint8_t directory_bits;
	uint8_t prefix_count;
	uint32_t prefix_start;
	uint64_t packed_nid;
	uint8_t filter_reserved;
	uint8_t reserved[23];
} __attribute__((packed));

struct erofs_device {
	uint8_t tag[64];
	uint32_t blocks;
	uint32_t mapped_block; /* where the device begins among the blocks of all devices */
	uint8_t reserved[56];
};

enum erofs_layout {
	EROFS_FLAT_PLAIN = 0,  /* whole blocks from `data` on */
	EROFS_FLAT_INLINE = 2, /* the same, but the last block's bytes follow the inode and its xattrs */
	EROFS_CHUNKED = 4,     /* block addresses of chunks follow the inode and its xattrs */
};

#define EROFS_INODE_FORMAT(layout, is_extended) ((uint16_t)((layout) << 1 | (is_extended)))
#define EROFS_CHUNK_INDEXES 0x20u /* in `data`: addresses are struct erofs_chunk, not uint32_t */

struct erofs_inode_extended {
	uint16_t format;
	uint16_t xattr_count; /* 0, or 1 + units of 4 bytes after the xattr header */
	uint16_t mode;
	uint16_t reserved;
	uint64_t size;
	uint32_t data; /* block, device number, or chunk format */
	uint32_t ino;
	uint32_t uid;
	uint32_t gid;
	int64_t mtime_seconds;
	uint32_t mtime_nanoseconds;
	uint32_t links;
	uint8_t reserved2[16];
};

struct erofs_inode_compact {
	uint16_t format;
	uint16_t xattr_count;
	uint16_t mode;
	uint16_t links;
	uint32_t size;
	uint32_t mtime; /* Linux >= 6.15: seconds after the build time; before: ignored */
	uint32_t data;
	uint32_t ino;
	uint16_t uid;
	uint16_t gid;
	uint32_t reserved2;
};

struct erofs_chunk {
	uint16_t advise;
	uint16_t device;
	uint32_t block;
};

enum erofs_file_type {
	EROFS_TYPE_REGULAR = 1,
	EROFS_TYPE_DIRECTORY,
	EROFS_TYPE_CHAR,
	EROFS_TYPE_BLOCK,
	EROFS_TYPE_FIFO,
	EROFS_TYPE_SOCKET,
	EROFS_TYPE_SYMLINK,
};

struct erofs_dirent {
	uint64_t nid;
	uint16_t name_offset;
	uint8_t type;
	uint8_t reserved;
} __attribute__((packed));

struct erofs_xattr_header {
	uint32_t filter; /* a bit is 0 where a name may be present */
	uint8_t shared_count;
	uint8_t reserved[7];
};

struct erofs_xattr_entry {
	uint8_t name_length; /* without the prefix */
	uint8_t prefix;
	uint16_t value_length;
};

enum erofs_xattr_prefix {
	EROFS_XATTR_USER = 1,
	EROFS_XATTR_ACL_ACCESS = 2,
	EROFS_XATTR_ACL_DEFAULT = 3,
	EROFS_XATTR_TRUSTED = 4,
	EROFS_XATTR_SECURITY = 6,
};

#define EROFS_XATTR_FILTER_SEED 0x25bbe08fu
#define EROFS_XATTR_VALUE_BYTES 65535u
#define EROFS_XATTR_BODY_BYTES (65534u * 4u) /* after the header: what xattr_count can say */

_Static_assert(sizeof(struct erofs_super) == 128, "format");
_Static_assert(sizeof(struct erofs_device) == 128, "format");
_Static_assert(sizeof(struct erofs_inode_extended) == 64, "format");
_Static_assert(sizeof(struct erofs_inode_compact) == 32, "format");
_Static_assert(sizeof(struct erofs_chunk) == 8, "format");
_Static_assert(sizeof(struct erofs_dirent) == 12, "format");
_Static_assert(sizeof(struct erofs_xattr_header) == 12, "format");
_Static_assert(sizeof(struct erofs_xattr_entry) == 4, "format");

/* The least shift by which one chunk of blocks covers `size` bytes; more than EROFS_CHUNK_SHIFT_MAX: none does. */
static inline uint32_t erofs_chunk_shift(uint64_t size, uint32_t block_bits)
{
	uint32_t shift = 0;

	while (shift <= EROFS_CHUNK_SHIFT_MAX && (UINT64_C(1) << (block_bits + shift)) < size)
		shift++;
	return shift;
}

static inline uint64_t erofs_round_up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

#endif
