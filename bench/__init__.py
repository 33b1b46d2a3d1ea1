"""The benchmark of layerstore against real peers, and the real images it runs on (also used by tests and demo)."""
