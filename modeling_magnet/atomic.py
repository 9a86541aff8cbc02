"""Writes a file or a folder whole or not at all: at a temporary path, renamed once it is complete."""

import contextlib
import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing tells a killed process's leftovers from a live one's
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX, LOCK, OLD = ".magnet-", ".partial", "lock", "old"

GATES = ("config.json", "adapter_config.json")
"""What every reader of a model's folder reads first. They close the folder while files are put in place.

Removing them would not be enough: without a config, a class of transformers uses its default one.
"""

CLOSED = """This folder holds no model now: files are being put in place, or the process that did so was killed.
If it was killed, save again. Until then, {old} holds the old files,
and {new} holds the new files that are not here yet.
"""


@contextlib.contextmanager
def atomic_write(target: str | os.PathLike, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary path, and move what the block writes there to `target` once it is complete.

    A new file or folder appears whole. A file replaces an existing file at once. A folder's files
    replace the files of the same names in an existing folder, and all other files stay. While they are
    moved, a text that makes every reader raise an error replaces the model's config. So if the process
    is killed then, old and new files are never read together.

    An error in the block or during the move, including Ctrl-C, leaves the old content. Leftovers of
    killed processes are removed. Files that running processes write are not.

    Args:
        target: a file, or a folder, which may be a symbolic link to one. Its parent folder exists.
        stale: `fnmatch` patterns of other files in an existing folder, to be removed with the old
            files.

    Raises:
        OSError: the disk is full, or the place cannot be written to.

    Example:
        >>> with atomic_write("outputs/results.json") as temporary:
        ...     temporary.write_text(json.dumps(results))
    """
    target = Path(target)
    if target.is_dir():
        target = target.resolve()
        place = target  # its own files can be renamed into it, even if it is a mount point
    else:
        place = target.parent
    _sweep(place)
    holder, lock = _make_holder(place)
    try:
        temporary = holder / f"new{target.suffix}"
        yield temporary
        _flush_to_disk(temporary)
        _put(temporary, target, stale)
        _sweep(place, replaced=place == target)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)
        lock.close()


def _sweep(place: Path, replaced: bool = False) -> None:
    """Remove what killed processes left in a folder. Old files are removed only once they are replaced."""
    if fcntl is None:
        return
    for holder in place.glob(f"{PREFIX}*{SUFFIX}"):
        if holder.is_symlink() or ((holder / OLD).exists() and not replaced):
            continue
        with contextlib.suppress(
            OSError
        ):  # a running process holds the lock, or there are no locks
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(holder / LOCK, flags, 0o600), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(holder, ignore_errors=True)


def _make_holder(place: Path):
    """A new folder that no other user can write to, and the lock that says it is in use."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=place))
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked
            lock = open(holder / LOCK, "w")  # noqa: SIM115  closed when all is written
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)
            if holder.exists():
                return holder, lock
            lock.close()


def _flush_to_disk(path: Path) -> None:
    """Flush files to disk, so that none is renamed into place before its content."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "r+b") as opened:
                os.fsync(opened.fileno())


def _put(temporary: Path, target: Path, stale: Sequence[str]) -> None:
    """Put a file or a folder in place."""
    if temporary.is_file():
        temporary.replace(target)
        return
    if not target.is_dir():
        try:
            temporary.rename(target)
            return
        except OSError:
            if not target.is_dir():  # which another process has made meanwhile
                raise
    with _folder_locked(target):
        _exchange(temporary, target, stale)


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Let no two processes put files into a folder at once."""
    if fcntl is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _exchange(new: Path, target: Path, stale: Sequence[str]) -> None:
    """Take the old files out of a folder and put the new ones in, or leave it as it was."""
    old = new.with_name(OLD)
    old.mkdir()
    coming = [path.name for path in new.iterdir()]
    gates = [name for name in GATES if name in coming]
    going = [path.name for path in target.iterdir() if _goes(path.name, coming, stale)]
    try:
        for name in gates:
            if name in going:
                shutil.copy2(target / name, old / name, follow_symlinks=False)
            closed = new.with_name("closed")
            closed.write_text(
                CLOSED.format(old=os.path.relpath(old, target), new=os.path.relpath(new, target)),
                encoding="utf-8",
            )
            closed.replace(target / name)
        for name in sorted(set(going) - set(gates)):  # an adapter's config before its weights
            (target / name).rename(old / name)
        for name in sorted(set(coming) - set(gates)):
            (new / name).rename(target / name)
        for name in reversed(gates):
            (new / name).replace(target / name)
    except BaseException:
        for name in coming:
            if not os.path.lexists(new / name):
                (target / name).rename(new / name)
        for name in sorted(going, key=lambda name: name in GATES):
            if os.path.lexists(old / name):
                (old / name).replace(target / name)
        for name in set(gates) - set(going):
            (target / name).unlink(missing_ok=True)
        raise


def _goes(name: str, coming: Sequence[str], stale: Sequence[str]) -> bool:
    if name.startswith(PREFIX) and name.endswith(SUFFIX):
        return False
    return name in coming or any(fnmatch.fnmatch(name, pattern) for pattern in stale)
