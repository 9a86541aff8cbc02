"""Kills a process: at each of the steps in which it changes names on disk, or when a file is there."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import start

STEPS = ("mkdir", "rename", "replace", "unlink", "rmdir", "utime")
"""What `pathlib` and `shutil` change names by, and the end of a copy."""


class Stop(BaseException):
    """Ends what runs, as Ctrl-C does."""


def killed_at_each_step(save: Callable[[], object], before: Callable[[], object]) -> Iterator[int]:
    """Run `save` in a process that is killed at its first step, then at its second, and so on.

    `before` runs in this process before each; yields after each kill, and ends where none came.
    """
    step = 0
    while True:
        before()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _count_down(step, lambda: os._exit(9))
                save()
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            assert step > 0, "no step was seen"
            return
        assert status == 9, "saving failed of itself"
        yield step
        step += 1


def stopped_at_each_step(
    save: Callable[[], object], before: Callable[[], object], monkeypatch
) -> Iterator[int]:
    """The same with an exception in this process."""
    step = 0
    while True:
        before()
        with monkeypatch.context() as patch:
            _count_down(step, _stop, patch.setattr)
            try:
                save()
                return
            except Stop:
                pass
        yield step
        step += 1


def kill_when(
    file: Path, *arguments, by: int = signal.SIGKILL, status: int = -signal.SIGKILL
) -> str:
    """Start a Python process with these arguments, and end it as soon as a file exists.

    Returns what it wrote, after it ended with this status.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = start(*arguments, log=log)
        while not file.exists():
            assert process.is_alive(), f"it ended before it could be killed: {log.read_text()}"
            time.sleep(0.002)
        os.kill(process.pid, by)
        process.join()
        assert process.exitcode == status, log.read_text()
        return log.read_text()


def _stop():
    raise Stop


def _count_down(steps: int, then: Callable[[], object], put: Callable = setattr) -> None:
    """Call `then` in place of the step after so many."""
    left = [steps]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == -1:
                then()
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        put(os, name, counted(getattr(os, name)))
