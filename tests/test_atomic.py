"""A file or folder is written whole, or not at all."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from killing import killed_at_each_step, stopped_at_each_step

from modeling_magnet.atomic import atomic_write

OTHER_DISK = Path("/dev/shm")

WAIT = """
import sys
from modeling_magnet.atomic import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    sys.stdin.read()
    temporary.write_text("whole")
"""


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def content(folder: Path) -> dict[str, str]:
    """All files but temporary ones."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".magnet-")]
    return {name: (folder / name).read_text() for name in sorted(names)}


OLD = {"config__json": "old", "weights": "old", "shard-1": "old", "notes__txt": "mine"}
NEW = {"config__json": "new", "weights": "new", "more": "new"}
BEFORE = {"config.json": "old", "weights": "old", "shard-1": "old", "notes.txt": "mine"}
AFTER = {"config.json": "new", "weights": "new", "more": "new", "notes.txt": "mine"}


def save(target: Path) -> None:
    with atomic_write(target, stale=["shard-*"]) as temporary:
        fill(temporary, **NEW)


@pytest.fixture
def old(tmp_path):
    """Makes the folder anew."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        return fill(tmp_path / "m", **OLD)

    return make


def test_a_new_file_and_a_new_folder_appear_whole(tmp_path):
    for name, write in (("f.json", lambda p: p.write_text("x")), ("d", lambda p: fill(p, **NEW))):
        with atomic_write(tmp_path / name) as temporary:
            write(temporary)
            assert not (tmp_path / name).exists()
        assert (tmp_path / name).exists()
    assert sorted(os.listdir(tmp_path)) == ["d", "f.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o777 & ~umask  # as if made in place


def test_a_folder_keeps_its_other_files(old):
    target = old()
    save(target)
    assert content(target) == AFTER
    assert len(os.listdir(target)) == len(AFTER)


def test_killed_at_any_step_old_and_new_never_stand_side_by_side(tmp_path, old):
    seen = set()
    for _ in killed_at_each_step(lambda: save(tmp_path / "m"), old):
        found = content(tmp_path / "m")
        seen.add(found["config.json"][:20])
        if found["config.json"] == "old":
            assert found == BEFORE
        elif found["config.json"] == "new":
            assert found == AFTER
        else:
            del found["config.json"]
            assert found.pop("notes.txt") == "mine" and len(set(found.values())) < 2
        save(tmp_path / "m")
        assert sorted(os.listdir(tmp_path / "m")) == sorted(content(tmp_path / "m"))  # and swept
        assert content(tmp_path / "m") | AFTER == content(tmp_path / "m")
    assert seen == {"old", "This folder holds no", "new"}


def test_stopped_at_any_step_what_was_there_is_there(tmp_path, old, monkeypatch):
    found = []
    for _ in stopped_at_each_step(lambda: save(tmp_path / "m"), old, monkeypatch):
        found.append(content(tmp_path / "m"))
    moved = found.index(AFTER)  # from then on, all that is left is to clean up
    assert moved > 7 and all(files == BEFORE for files in found[:moved])
    assert all(files == AFTER for files in found[moved:])


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", WAIT, tmp_path / "f"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return process, Path(process.stdout.readline().strip())

    (dead, left), (living, kept) = start(), start()
    dead.kill()
    dead.wait()
    assert left.read_text() == "half"
    with atomic_write(tmp_path / "g") as temporary:
        temporary.write_text("x")
    assert not left.parent.exists() and kept.read_text() == "half"
    living.communicate("")
    assert (tmp_path / "f").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["f", "g"]


@pytest.mark.skipif(not OTHER_DISK.is_dir(), reason="no other file system")
def test_a_link_to_another_file_system(tmp_path):
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as other:
        assert Path(other).stat().st_dev != tmp_path.stat().st_dev
        (tmp_path / "m").symlink_to(other)
        for _ in range(2):
            save(tmp_path / "m")
            assert content(Path(other)).keys() == NEW.keys() - {"config__json"} | {"config.json"}
        assert (tmp_path / "m").is_symlink() and os.listdir(tmp_path) == ["m"]


def test_planted_links_are_not_followed(tmp_path):
    victim = fill(tmp_path / "victim", precious="mine")
    place = tmp_path / "shared"
    place.mkdir()
    (place / ".magnet-planted.partial").symlink_to(victim)
    (place / ".f.partial").symlink_to(victim / "precious")
    (place / "f").symlink_to(victim / "precious")
    trap = fill(place / ".magnet-trap.partial")
    (trap / "lock").symlink_to(victim / "made")
    with atomic_write(place / "f") as temporary:
        temporary.write_text("x")
    assert content(victim) == {"precious": "mine"}
    assert (place / "f").read_text() == "x" and not (place / "f").is_symlink()


def test_of_two_at_once_the_folder_is_one_or_the_other(tmp_path):
    target = fill(tmp_path / "m", config__json="0")

    def write(number: int) -> None:
        for _ in range(20):
            with atomic_write(target, stale=["own-*"]) as temporary:
                names = {f"f{n}": str(number) for n in range(5)}
                fill(temporary, config__json=str(number), **{f"own-{number}": str(number)}, **names)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(content(target).values())) == 1 and len(os.listdir(target)) == 7


def test_errors_name_the_target(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space.*results\.npy"),
        atomic_write(tmp_path / "results.npy") as temporary,
    ):
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not os.listdir(tmp_path)
    with (
        pytest.raises(FileNotFoundError, match="missing"),
        atomic_write(tmp_path / "missing" / "f"),
    ):
        pass
