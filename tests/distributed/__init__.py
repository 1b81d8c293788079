"""A package, and not a plain folder, so that the `process` fixture ends with its last test."""
