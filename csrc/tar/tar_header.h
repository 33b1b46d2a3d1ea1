/* A header block of a tar to an entry. */
#ifndef LS_TAR_HEADER_H
#define LS_TAR_HEADER_H

#include "tar_impl.h"

enum tar_number tar_parse_field(const uint8_t *field, size_t width, int64_t *value);
/* A numeric field of a header or sparse block, LS_CORRUPT unless it is a number that is not negative. */
int tar_field_unsigned(const struct ls_tar *tar, const uint8_t *field, size_t width, const char *name, uint64_t *value,
                       struct ls_error *err);
/* Read a header block and choose the next stage. */
int tar_read_header(struct ls_tar *tar, const uint8_t *block, struct ls_error *err);

#endif
