/* How what is gone is written: in a layer's tar (OCI image specification, layer.md, "Whiteouts"), and in the upper
 * directory of an overlay (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). */
#ifndef LS_WHITEOUT_H
#define LS_WHITEOUT_H

#include <stdint.h>
#include <sys/stat.h>

#define LS_WHITEOUT ".wh."                /* begins the name of a whiteout */
#define LS_WHITEOUT_AUFS ".wh..wh."       /* begins the names that AUFS keeps for itself */
#define LS_WHITEOUT_OPAQUE ".wh..wh..opq" /* the name that makes its directory opaque */
#define LS_WHITEOUT_BYTES (sizeof(LS_WHITEOUT) - 1)

/* Overlayfs's own extended attributes. */
#define LS_OVERLAY "trusted.overlay."
#define LS_OVERLAY_OPAQUE LS_OVERLAY "opaque"
#define LS_OVERLAY_REDIRECT LS_OVERLAY "redirect"
#define LS_OVERLAY_METACOPY LS_OVERLAY "metacopy"

/* A character device 0:0, which overlayfs takes for a whiteout. */
static inline int ls_is_overlay_whiteout(mode_t mode, uint64_t device)
{
	return S_ISCHR(mode) && !device;
}

#endif
