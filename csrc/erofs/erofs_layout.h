/* Where everything of the tree image of a chain goes. */
#ifndef LS_EROFS_LAYOUT_H
#define LS_EROFS_LAYOUT_H

#include "erofs_tree.h"

/* Run the passes that fill the tree, from an index and locations that are set. */
int erofs_lay_out(struct erofs_tree *tree, struct ls_error *err);

#endif
