#include "upper_tar.h"

static struct ls_tar_entry describe(const struct ls_upper_entry *entry)
{
	/* By the four bits of S_IFMT. */
	static const enum ls_tar_type types[16] = {
	    [S_IFDIR >> 12] = LS_TAR_DIRECTORY, [S_IFLNK >> 12] = LS_TAR_SYMLINK, [S_IFIFO >> 12] = LS_TAR_FIFO,
	    [S_IFCHR >> 12] = LS_TAR_CHAR,      [S_IFBLK >> 12] = LS_TAR_BLOCK,   [S_IFREG >> 12] = LS_TAR_REGULAR,
	};
	enum ls_tar_type type = entry->link.length ? LS_TAR_HARDLINK : types[entry->mode >> 12 & 15];
	int is_device = type == LS_TAR_CHAR || type == LS_TAR_BLOCK;

	return (struct ls_tar_entry){
	    .type = type,
	    .mode = entry->mode & 07777,
	    .uid = entry->uid,
	    .gid = entry->gid,
	    .mtime_seconds = entry->mtime_seconds,
	    .mtime_nanoseconds = entry->mtime_nanoseconds,
	    .device_major = is_device ? entry->device_major : 0,
	    .device_minor = is_device ? entry->device_minor : 0,
	    .size = type == LS_TAR_REGULAR ? entry->size : 0,
	    .path = entry->path,
	    .link = type == LS_TAR_HARDLINK ? entry->link : entry->target,
	    .xattrs = entry->xattrs,
	    .xattr_count = entry->xattr_count,
	};
}

static int write_entry(const struct ls_upper_entry *entry, struct ls_tar_writer *writer, struct ls_error *err)
{
	struct ls_tar_entry described;
	int status;

	if (!entry->mode)
		return ls_tar_write_whiteout(writer, entry->path, err);
	described = describe(entry);
	status = ls_tar_write_entry(writer, &described, err);
	if (!status && entry->is_opaque)
		status = ls_tar_write_opaque(writer, entry->path, err);
	if (status || !described.size)
		return status;
	status = ls_tar_write_data(writer, entry->bytes.bytes, entry->bytes.length, err);
	return status ? status : ls_tar_write_data_end(writer, err);
}

int ls_upper_write(const struct ls_upper_entry *entries, size_t count, struct ls_tar_writer *writer,
                   struct ls_error *err)
{
	int status = LS_OK;

	for (size_t i = 0; i < count && !status; i++)
		status = write_entry(&entries[i], writer, err);
	return status;
}
