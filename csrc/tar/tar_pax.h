/* The extended headers of a tar: pax, and GNU's long names. */
#ifndef LS_TAR_PAX_H
#define LS_TAR_PAX_H

#include "tar_impl.h"

enum tar_number tar_parse_decimal(const uint8_t *text, size_t length, uint64_t *value);
/* Forget the extended headers of the last entry. */
void tar_values_reset(struct ls_tar *tar);
/* Prepare for the body of an extended header of `size` bytes. */
int tar_extended_begin(struct ls_tar *tar, uint8_t type, uint64_t size, struct ls_error *err);
/* Take what the span has of the body; when it is whole, read it. */
int tar_extended_step(struct ls_tar *tar, struct ls_error *err);
/* 1 and *value when an extended header gives the entry a value for the key. */
int tar_value(const struct ls_tar *tar, enum tar_key key, struct ls_bytes *value);
/* The same for a decimal number; *found says whether there is one. LS_CORRUPT when it is not a number. */
int tar_value_unsigned(const struct ls_tar *tar, enum tar_key key, int *found, uint64_t *number, struct ls_error *err);
/* The entry's mtime, when an extended header gives it. */
int tar_value_mtime(struct ls_tar *tar, int *found, struct ls_error *err);
/* Fill the entry's xattrs. */
int tar_collect_xattrs(struct ls_tar *tar, struct ls_error *err);

#endif
