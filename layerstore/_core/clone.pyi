from collections.abc import Sequence
from os import PathLike

_Path = str | bytes | PathLike[str] | PathLike[bytes]

def clone_tree(source_fd: int, source: _Path, target_fd: int, target: _Path) -> bool: ...
def join_trees(uppers: Sequence[int], target_fd: int) -> bool: ...
