#include "erofs_tree.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/whiteout.h"

int erofs_refuse(const struct ls_index *index, uint32_t record, int status, struct ls_error *err, const char *format,
                 ...)
{
	const struct ls_record *at = &index->records[record];
	const char *path = "";
	char reason[500];
	va_list arguments;

	if (ls_index_string(index, at->path, at->path_length, &path, NULL))
		path = "";
	va_start(arguments, format);
	vsnprintf(reason, sizeof(reason), format, arguments);
	va_end(arguments);
	return ls_fail(err, status, "writing the EROFS image of a chain: '/%s': %s",
	               LS_SHOWN(path, *path ? at->path_length : 0), reason);
}

int erofs_is_hidden(const struct ls_record *record)
{
	return ls_is_overlay_whiteout(record->mode, record->size);
}

int erofs_is_inode(const struct erofs_tree *tree, uint32_t record)
{
	const struct ls_record *at = &tree->index->records[record];

	return at->inode == record && !erofs_is_hidden(at);
}

uint32_t erofs_content(const struct ls_record *record)
{
	return S_ISREG(record->mode) ? record->data : LS_NONE;
}

uint64_t erofs_inode_number(const struct erofs_tree *tree, uint32_t record)
{
	return tree->places[tree->index->records[record].inode].position / EROFS_NID_BYTES;
}

void erofs_tree_cursor_init(const struct erofs_tree *tree, struct erofs_tree_cursor *cursor, uint32_t directory)
{
	*cursor = (struct erofs_tree_cursor){.directory = directory, .next = tree->index->records[directory].data};
}

static uint8_t file_type(uint32_t mode)
{
	/* By the four bits of S_IFMT. */
	static const uint8_t types[16] = {
	    [S_IFREG >> 12] = EROFS_TYPE_REGULAR, [S_IFDIR >> 12] = EROFS_TYPE_DIRECTORY,
	    [S_IFCHR >> 12] = EROFS_TYPE_CHAR,    [S_IFBLK >> 12] = EROFS_TYPE_BLOCK,
	    [S_IFIFO >> 12] = EROFS_TYPE_FIFO,    [S_IFLNK >> 12] = EROFS_TYPE_SYMLINK,
	};

	return types[mode >> 12 & 15];
}

/* The child that the cursor is at; NULL name when there is none. */
static int peek_child(const struct erofs_tree *tree, struct erofs_tree_cursor *cursor, struct erofs_dir_entry *entry,
                      struct ls_error *err)
{
	const struct ls_record *records = tree->index->records;
	const struct ls_record *directory = &records[cursor->directory];
	const struct ls_record *child;
	uint32_t length;
	int status;

	entry->name = NULL;
	if (!directory->count)
		return LS_OK;
	while (cursor->next < directory->data + directory->count && erofs_is_hidden(&records[cursor->next]))
		cursor->next++;
	if (cursor->next == directory->data + directory->count)
		return LS_OK;
	child = &records[cursor->next];
	length = (uint32_t)child->path_length - child->name_start;
	if (child->name_start >= child->path_length)
		return erofs_refuse(tree->index, cursor->next, LS_CORRUPT, err, "its name is empty");
	if (length > EROFS_NAME_BYTES)
		return erofs_refuse(tree->index, cursor->next, LS_LIMIT, err,
		                    "its name has %u bytes, more than the %u of EROFS", length, EROFS_NAME_BYTES);
	status = ls_index_string(tree->index, child->path, child->path_length, &entry->name, err);
	if (status)
		return status;
	entry->name += child->name_start;
	entry->name_length = (uint16_t)length;
	entry->nid = erofs_inode_number(tree, cursor->next);
	entry->type = file_type(child->mode);
	return LS_OK;
}

/* Whether "." or ".." comes next, before the child. */
static int dot_is_next(const struct erofs_tree_cursor *cursor, const struct erofs_dir_entry *child)
{
	return cursor->dots < 2 &&
	       (!child->name || ls_compare("..", cursor->dots + 1, child->name, child->name_length) < 0);
}

int erofs_tree_next(const struct erofs_tree *tree, struct erofs_tree_cursor *cursor, struct erofs_dir_entry *entry,
                    struct ls_error *err)
{
	uint32_t parent = tree->index->records[cursor->directory].parent;
	int status = peek_child(tree, cursor, entry, err);

	if (status)
		return status;
	if (dot_is_next(cursor, entry)) {
		cursor->dots++;
		*entry = (struct erofs_dir_entry){
		    .name = "..",
		    .name_length = (uint16_t)cursor->dots,
		    .nid = erofs_inode_number(tree, cursor->dots == 1 ? cursor->directory : parent),
		    .type = EROFS_TYPE_DIRECTORY,
		};
	} else if (entry->name) {
		cursor->next++;
	}
	if (entry->name && cursor->previous &&
	    ls_compare(cursor->previous, cursor->previous_length, entry->name, entry->name_length) >= 0)
		return erofs_refuse(tree->index, cursor->directory, LS_CORRUPT, err, "its entries are not in order");
	cursor->previous = entry->name;
	cursor->previous_length = entry->name_length;
	return LS_OK;
}
