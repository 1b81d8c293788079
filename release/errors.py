"""The one error of this package."""


class ReleaseError(RuntimeError):
    """A release must not be made or published; the message says why and what to do about it, in one line."""
