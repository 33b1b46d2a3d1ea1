"""Containers: what an OCI runtime needs to start one, and the runtime itself."""
