cdef bytes c_string(object path)
