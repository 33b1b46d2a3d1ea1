#include "upper_tar.h"

static struct ls_tar_entry describe(const struct ls_upper_entry *entry)
{
	struct ls_tar_entry described = {
	    .mode = entry->mode & 07777,
	    .uid = entry->uid,
	    .gid = entry->gid,
	    .mtime_seconds = entry->mtime_seconds,
	    .mtime_nanoseconds = entry->mtime_nanoseconds,
	    .path = entry->path,
	    .link = entry->target,
	    .xattrs = entry->xattrs,
	    .xattr_count = entry->xattr_count,
	};

	if (entry->link.length) {
		described.type = LS_TAR_HARDLINK;
		described.link = entry->link;
		return described;
	}
	switch (entry->mode & S_IFMT) {
	case S_IFDIR:
		described.type = LS_TAR_DIRECTORY;
		break;
	case S_IFLNK:
		described.type = LS_TAR_SYMLINK;
		break;
	case S_IFIFO:
		described.type = LS_TAR_FIFO;
		break;
	case S_IFCHR:
	case S_IFBLK:
		described.type = S_ISCHR(entry->mode) ? LS_TAR_CHAR : LS_TAR_BLOCK;
		described.device_major = entry->device_major;
		described.device_minor = entry->device_minor;
		break;
	default:
		described.type = LS_TAR_REGULAR;
		described.size = entry->size;
	}
	return described;
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
