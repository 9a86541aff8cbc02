"""Locks a folder, so that one process at a time writes to it, for hours and file by file.

A file or folder that is saved in one go needs no such lock: see `atomic`.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None  # type: ignore[assignment]

LOCK = ".magnet.lock"


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder until the end of the block, against all processes that also lock it.

    The operating system holds the lock and releases it when the process ends, even if it is killed. The
    file that a killed process leaves blocks nobody.

    Args:
        folder: exists.

    Raises:
        BlockingIOError: another process has locked it; the message says which.
        OSError: the folder cannot be written to, or the lock is a symbolic link.

    Example:
        >>> with folder_lock(Path("outputs")):
        ...     train()
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    with _locked(path) as file:
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        file = os.fdopen(os.open(path, flags, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                holder = file.read() or "another process"
            raise BlockingIOError(
                f"{path.parent} is in use by {holder}: wait until that is done, or give another folder"
            ) from None
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file
        file.close()  # its last holder removed it in the meantime
