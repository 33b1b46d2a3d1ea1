from layerstore._core.buffer cimport ls_buffer, ls_bytes
from layerstore._core.status cimport ls_error
from layerstore._core.tar cimport ls_tar_entry


cdef extern from "tar/tar_writer.h" nogil:
    struct ls_tar_writer:
        ls_buffer out

    int ls_tar_write_entry(ls_tar_writer *writer, const ls_tar_entry *entry, ls_error *err)
    int ls_tar_write_opaque(ls_tar_writer *writer, ls_bytes directory, ls_error *err)
    int ls_tar_write_whiteout(ls_tar_writer *writer, ls_bytes path, ls_error *err)
    int ls_tar_write_data(ls_tar_writer *writer, const void *bytes, size_t length, ls_error *err)
    int ls_tar_write_data_end(ls_tar_writer *writer, ls_error *err)
    int ls_tar_write_end(ls_tar_writer *writer, ls_error *err)


cdef class TarWriter:
    cdef ls_tar_writer writer
