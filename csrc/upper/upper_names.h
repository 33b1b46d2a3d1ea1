/* How many names an inode has among those that show. Its st_nlink may count names in other trees (join_trees.h), and some
 * that an upper hides. Private to this folder. */
#ifndef LS_UPPER_NAMES_H
#define LS_UPPER_NAMES_H

#include "upper_walk.h"

struct upper_names {
	void *counted; /* of tsearch(3) */
	int is_read;
};

/* Whether the inode has several. Reads all of the tree the first time, which `walk` is of. */
int upper_names_several(struct upper_names *names, const struct upper_walk *walk, const struct stat *status,
                        int *has_several, struct ls_error *err);
void upper_names_free(struct upper_names *names);

#endif
