/* The four forms of sparse files in a tar. */
#ifndef LS_TAR_SPARSE_H
#define LS_TAR_SPARSE_H

#include "tar_impl.h"

enum tar_sparse_form { TAR_NOT_SPARSE, TAR_SPARSE_OLD, TAR_SPARSE_0, TAR_SPARSE_1 };

int tar_sparse_form(const struct ls_tar *tar, uint8_t type, enum tar_sparse_form *form, struct ls_error *err);
/* Read what the headers say of the map; the entry is ready, or blocks of the map follow. */
int tar_sparse_begin(struct ls_tar *tar, enum tar_sparse_form form, const uint8_t *block, struct ls_error *err);
int tar_sparse_extension(struct ls_tar *tar, const uint8_t *block, struct ls_error *err);
int tar_sparse_map_block(struct ls_tar *tar, const uint8_t *block, struct ls_error *err);
/* Records GNU.sparse.offset and GNU.sparse.numbytes of form 0.0, in their order. */
int tar_sparse_offset(struct ls_tar *tar, const uint8_t *text, size_t length, struct ls_error *err);
int tar_sparse_numbytes(struct ls_tar *tar, const uint8_t *text, size_t length, struct ls_error *err);

#endif
