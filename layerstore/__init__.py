"""layerstore: a storage engine for container image layers."""
