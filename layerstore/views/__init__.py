"""Views: what a chain of layers shows, read from its merged index without mounting it."""
