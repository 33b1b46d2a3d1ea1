#include "erofs_super.h"

#include <string.h>

#include "hash/blake3.h"

/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) from all ones and, as EROFS has it, without the final
 * inversion. A bit at a time: it sees 3 KiB an image. */
static uint32_t crc32c(const uint8_t *bytes, size_t length)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < length; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return crc;
}

/* The checksum covers the rest of the superblock's block, or one block where blocks are smaller than its offset. */
static size_t checksummed_bytes(uint8_t block_bits)
{
	size_t block = (size_t)1 << block_bits;

	return block > EROFS_SUPER_OFFSET ? block - EROFS_SUPER_OFFSET : block;
}

/* An overlay's upper directory notes the UUID and the position of what each file was copied up from, and overlayfs
 * follows that for inode numbers: so images that differ must differ in UUID. */
static int derive_uuid(const struct ls_buffer *image, uint8_t uuid[16], struct ls_error *err)
{
	uint8_t digest[LS_B3_DIGEST_BYTES];
	int status = ls_b3_hash(image->bytes, image->length, digest, err);

	if (status)
		return status;
	memcpy(uuid, digest, 16);
	uuid[6] = (uuid[6] & 0x0f) | 0x80; /* RFC 9562, 5.8: version 8, "custom" */
	uuid[8] = (uuid[8] & 0x3f) | 0x80;
	return LS_OK;
}

int ls_erofs_seal(struct ls_buffer *image, struct erofs_super *super, struct ls_error *err)
{
	uint64_t blocks = image->length >> super->block_bits;
	uint8_t *place = image->bytes + EROFS_SUPER_OFFSET;
	int status;

	if (blocks > UINT32_MAX)
		return ls_fail(err, LS_LIMIT,
		               "writing an EROFS image: %llu blocks are more than its 32-bit addresses hold",
		               (unsigned long long)blocks);
	super->magic = EROFS_MAGIC;
	super->compat |= EROFS_COMPAT_CHECKSUM;
	super->blocks = (uint32_t)blocks;
	super->checksum = 0;
	memset(super->uuid, 0, sizeof(super->uuid));
	memcpy(place, super, sizeof(*super));
	status = derive_uuid(image, super->uuid, err);
	if (status)
		return status;
	memcpy(place, super, sizeof(*super));
	super->checksum = crc32c(place, checksummed_bytes(super->block_bits));
	memcpy(place, super, sizeof(*super));
	return LS_OK;
}
