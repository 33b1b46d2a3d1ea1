/* The layout of a tar header block, and the names of pax records: what reading (tar.h) and writing (tar_writer.h) share.
 *
 * POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format";
 * SCHILY.xattr: star(5). */
#ifndef LS_TAR_FORMAT_H
#define LS_TAR_FORMAT_H

#define TAR_BLOCK 512

/* Where the fields of a header block begin. */
enum tar_field {
	TAR_AT_NAME = 0,
	TAR_AT_MODE = 100,
	TAR_AT_UID = 108,
	TAR_AT_GID = 116,
	TAR_AT_SIZE = 124,
	TAR_AT_MTIME = 136,
	TAR_AT_CHECKSUM = 148,
	TAR_AT_TYPE = 156,
	TAR_AT_LINK = 157,
	TAR_AT_MAGIC = 257,
	TAR_AT_MAJOR = 329,
	TAR_AT_MINOR = 337,
	TAR_AT_PREFIX = 345,
};

/* How long they are; name and link are of one length, and so are mode, owner, checksum and device numbers. */
enum tar_field_bytes {
	TAR_NAME_BYTES = 100,
	TAR_ID_BYTES = 8,
	TAR_NUMBER_BYTES = 12,
	TAR_PREFIX_BYTES = 155,
};

#define TAR_XATTR_PREFIX "SCHILY.xattr."

#endif
