"""The extent driver: a container's writable layer in an append-only log, without root and without a mount."""
