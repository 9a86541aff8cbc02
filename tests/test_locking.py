"""A folder that is one process's alone: who else asks is told, and the dead hold nothing."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_magnet.locking import LOCK, folder_lock

ROOT = Path(__file__).parents[1]

HOLD = """
import sys
from pathlib import Path
from modeling_magnet.locking import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def enter(folder) -> None:
    with folder_lock(folder):
        assert (folder / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_second_process_is_told_who_is_in_there(tmp_path, holder):
    with pytest.raises(BlockingIOError) as error, folder_lock(tmp_path):
        raise AssertionError("it came in")
    in_use = f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}: wait"
    assert str(error.value).startswith(in_use)
    holder.communicate("\n")
    assert not list(tmp_path.iterdir())
    enter(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    enter(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_error_gives_the_folder_back(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        1 / 0  # noqa: B018
    enter(tmp_path)


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"):
        enter(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
