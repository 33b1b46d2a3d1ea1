/* SHA-256 of one short buffer, a config or a list of digests: NIST FIPS 180-4, sections 4.1.2, 4.2.2, 5 and 6.2. It is
 * portable and plain; layers, which are long, are hashed by OpenSSL, whose loading alone takes longer than this does for a
 * hundred configs. */
#ifndef LS_SHA256_H
#define LS_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define LS_SHA256_BYTES 32

void ls_sha256(const void *bytes, size_t length, uint8_t digest[LS_SHA256_BYTES]);

#endif
