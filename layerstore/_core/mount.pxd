cdef bytes c_string(object path)


cdef class Descriptors:
    cdef int *array
    cdef size_t count
