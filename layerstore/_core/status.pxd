cdef extern from "base/status.h" nogil:
    enum ls_status:
        LS_OK
        LS_SYSTEM
        LS_NO_MEMORY
        LS_CORRUPT
        LS_INVALID
        LS_LIMIT
        LS_NOT_FOUND
        LS_UNSUPPORTED

    struct ls_error:
        int status
        int sys_errno
        char message[1024]

cdef int check(int status, ls_error *err) except -1
