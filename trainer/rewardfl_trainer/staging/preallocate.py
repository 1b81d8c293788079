"""Takes the place of a file on the disk before it is written, so that a disk that is too small shows at once."""

import ctypes
import errno
import os

_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def preallocate(descriptor: int, size: int) -> None:
    """Give a file this size and its blocks; only the size where the file system cannot give blocks beforehand.

    The C library's posix_fallocate is not used: on such file systems it writes into every block, all of the file once.

    Raises:
        OSError: the disk is full.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    if fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        error = ctypes.get_errno()
        if error not in _CANNOT:
            raise OSError(error, os.strerror(error))
    os.ftruncate(descriptor, size)
