"""Images as others write them: manifests, configs, docker archives and OCI layouts."""
