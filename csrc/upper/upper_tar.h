/* The tar of what an upper directory holds. */
#ifndef LS_UPPER_TAR_H
#define LS_UPPER_TAR_H

#include "tar/tar_writer.h"
#include "upper.h"

/* Write entries to a layer's tar, with the contents that are in `bytes`. */
int ls_upper_write(const struct ls_upper_entry *entries, size_t count, struct ls_tar_writer *writer,
                   struct ls_error *err);

#endif
