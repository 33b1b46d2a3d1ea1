"""The Cython core: owns memory and releases the GIL around one C call a batch. No policy lives here."""
