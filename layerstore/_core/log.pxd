from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from layerstore._core.status cimport ls_error


cdef extern from "extent/log.h" nogil:
    const char *LS_LOG_MAGIC
    const uint32_t LS_LOG_VERSION
    const uint64_t LS_LOG_FIRST_NEW_INODE
    const uint32_t LS_LOG_MAX_PAYLOAD
    enum:
        LS_LOG_ID_BYTES
        LS_LOG_MORE
        LS_LOG_SYNCED

    enum ls_log_type:
        LS_LOG_WRITE
        LS_LOG_PUNCH
        LS_LOG_TRUNCATE
        LS_LOG_CREATE
        LS_LOG_ATTRIBUTES
        LS_LOG_ENTRY
        LS_LOG_REMOVE
        LS_LOG_XATTR
        LS_LOG_XATTR_REMOVE
        LS_LOG_SOURCE_LOG
        LS_LOG_EXTENTS

    enum ls_log_attribute:
        LS_LOG_SET_MODE
        LS_LOG_SET_UID
        LS_LOG_SET_GID
        LS_LOG_SET_MTIME

    struct ls_log_header:
        uint8_t magic[8]
        uint32_t version
        uint8_t id[16]
        uint8_t base_id[16]
        uint64_t base_length
        uint8_t chain_id[32]

    struct ls_log_record:
        uint32_t payload_length
        uint8_t type
        uint8_t flags
        uint16_t name_length
        uint64_t inode
        uint64_t offset
        uint64_t value
        int64_t mtime_seconds
        uint32_t mtime_nanoseconds
        uint32_t mode
        uint32_t uid
        uint32_t gid

    struct ls_log_scan:
        uint64_t end
        uint64_t later
        char reason[128]

    size_t ls_log_padding(size_t payload_length)
    size_t ls_log_record_bytes(size_t payload_length)
    void ls_log_seal_header(ls_log_header *header)
    int ls_log_read_header(const uint8_t *log, size_t length, ls_log_header *header, ls_error *err)
    int ls_log_check(const ls_log_record *record, const uint8_t *payload, ls_error *err)
    void ls_log_seal(ls_log_record *record, const uint8_t *payload, const uint8_t *id, uint64_t position)
    int ls_log_find_end(const uint8_t *log, size_t length, uint64_t checked, ls_log_scan *scan, ls_error *err)
    int ls_log_next(
        const uint8_t *log, uint64_t end, uint64_t *position, ls_log_record *record, ls_error *err
    )


cdef class Record:
    cdef ls_log_record fields
    cdef readonly bytes name
    cdef readonly bytes payload
    cdef readonly uint64_t payload_position
    cdef readonly uint32_t payload_length
