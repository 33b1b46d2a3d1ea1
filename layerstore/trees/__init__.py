"""Trees as entries: what is read and written by the entry, in the order of a layer; paths in a tree; its tar."""
