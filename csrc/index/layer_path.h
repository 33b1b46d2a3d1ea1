/* The paths of a layer that is being built. Private to layer.c. */
#ifndef LS_LAYER_PATH_H
#define LS_LAYER_PATH_H

#include "layer_impl.h"

/* Clean an archive's spelling of a path into the walk. A name has at most LS_LAYER_NAME_BYTES, and before it maybe ".wh.",
 * which is for whoever takes it for a name to count (ls_layer_find_child). */
int ls_layer_clean(const struct ls_layer_builder *builder, struct walk *walk, struct ls_bytes spelling,
                   struct ls_error *err);

/* Walk to the directory of the cleaned path. Levels that the layer does not have yet are LS_NONE. */
int ls_layer_resolve(const struct ls_layer_builder *builder, struct walk *walk, struct ls_error *err);

/* The resolved path as one string of *length bytes, to `out` of LS_LAYER_PATH_BYTES. */
void ls_layer_join(const struct walk *walk, char *out, size_t *length);

#endif
