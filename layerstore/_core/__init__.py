"""The Cython core: owns memory and releases the GIL around one C call a batch. No policy lives here.

A `.pyx` is named after what it wraps and has its types in the `.pyi` beside it. What several of them use of a C header
is declared in one `.pxd`. The C is in csrc/ (csrc/README.md).
"""
