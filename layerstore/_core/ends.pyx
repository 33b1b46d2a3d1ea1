"""What two contents have in common at their ends (csrc/content/ends.h)."""

from libc.stdint cimport uint8_t


cdef extern from "content/ends.h" nogil:
    size_t ls_equal_head(const uint8_t *a, const uint8_t *b, size_t most)
    size_t ls_equal_tail(const uint8_t *a_end, const uint8_t *b_end, size_t most)


def common_ends(const uint8_t[::1] a not None, const uint8_t[::1] b not None):
    """How many bytes two contents have in common at their beginnings, and of what is left of both at their ends."""
    cdef size_t a_length = a.shape[0], b_length = b.shape[0]
    cdef size_t shorter = a_length if a_length < b_length else b_length
    cdef size_t head, tail

    if not shorter:
        return 0, 0
    with nogil:
        head = ls_equal_head(&a[0], &b[0], shorter)
        tail = ls_equal_tail(&a[0] + a_length, &b[0] + b_length, shorter - head)
    return head, tail
