"""A folder of shards: kills, Ctrl-C and full disks lose at most the shard in work."""

import json
import os
import resource
import signal
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from killing import kill_when
from tiny import SENTENCES

from modeling_magnet.cli import vectors
from modeling_magnet.locking import LOCK, folder_lock

ROOT = Path(__file__).parents[2]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def many(tmp_path) -> Path:
    """600 rows, some of them faulty."""
    rows = [json.dumps({"text": f"{i} {SENTENCES[i % 5]}"}) for i in range(600)]
    rows[7] = rows[59] = rows[60] = rows[599] = "broken"
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def stopped(magnet, monkeypatch):
    """Runs `magnet`, with Ctrl-C pressed when so many lists of rows are encoded."""

    def run(*words, after: int) -> None:
        whole, done = vectors.Encoder.__call__, []

        def counted(self, rows):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(rows)
            return whole(self, rows)

        with monkeypatch.context() as patched:
            patched.setattr(vectors.Encoder, "__call__", counted)
            magnet(*words, code=130)

    return run


@pytest.mark.parametrize("format", ["npy", "parquet", "jsonl"])
def test_shards_hold_the_rows_in_order(magnet, folder, model, many, tmp_path, format):
    text = many.read_text(encoding="utf-8").splitlines()[:62]
    many.write_text("\n".join(text), encoding="utf-8")
    out = tmp_path / "out"
    options = ["--shard-size", 20, "--format", format]
    result = magnet("encode", folder, many, "-o", out, *options)
    assert "rows encoded: 59" in result.stderr and "rows skipped: 3" in result.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["rows"] == 59 and manifest["skipped"] == 3
    assert [shard["rows"] for shard in manifest["shards"]] == [20, 20, 19]
    assert [shard["next_index"] for shard in manifest["shards"]] == [21, 41, 62]
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [row["index"] for row in listed] == [7, 59, 60]
    kept = [i for i in range(62) if i not in (7, 59, 60)]
    expected = model.encode([json.loads(text[i])["text"] for i in kept])
    names = [f"part-{i:05d}.{format}" for i in range(3)]
    assert sorted(files(out)) == sorted([*names, "manifest.json", "skipped.jsonl"])
    if format == "npy":
        found = np.concatenate([np.load(out / name) for name in names])
    elif format == "parquet":
        tables = [pq.read_table(out / name) for name in names]
        assert [i for table in tables for i in table["index"].to_pylist()] == kept
        found = np.concatenate([np.stack(table["vector"].to_numpy()) for table in tables])
    else:
        rows = [
            json.loads(line) for name in names for line in (out / name).read_text().splitlines()
        ]
        assert [row["index"] for row in rows] == kept
        found = np.float32([row["vector"] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    before = files(out)
    magnet("encode", folder, many, "-o", out, *options, "--strict", code=3)
    assert files(out) == before


def test_killed_in_the_middle_and_run_again_it_is_as_if_never_killed(
    magnet, folder, many, tmp_path
):
    """Byte for byte, in a real process; the second run resumes, and does not begin anew."""
    options = ["--shard-size", 25, "--batch-size", 4]
    magnet("encode", folder, many, "-o", tmp_path / "whole", *options)
    out = tmp_path / "out"
    command = ("-m", "modeling_magnet.cli", "encode", folder, many, "-o", out, *options)
    kill_when(out / "part-00002.npy", *command)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.npy")}
    assert 3 <= len(finished) < 24
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    magnet("encode", folder, many, "-o", out, *options)
    assert files(out) == files(tmp_path / "whole")
    assert (out / "part-00001.npy").stat().st_mtime_ns == finished["part-00001.npy"]


def test_ctrl_c_leaves_the_finished_shards(magnet, folder, many, tmp_path):
    out = tmp_path / "out"
    options = ["--shard-size", 10, "--batch-size", 4]
    command = ("-m", "modeling_magnet.cli", "encode", folder, many, "-o", out, *options)
    error = kill_when(out / "part-00002.npy", *command, by=signal.SIGINT, status=130)
    assert "finished shards with" in error and "the same command resumes after them" in error
    assert error.endswith("magnet: stopped\n") and "Traceback" not in error
    assert not list(out.glob(".*"))
    manifest = json.loads((out / "manifest.json").read_text())
    unnoted = len(list(out.glob("part-*.npy"))) - len(manifest["shards"])
    assert len(manifest["shards"]) >= 2 and unnoted in (0, 1)  # 1: it came between the two


@pytest.mark.parametrize("format", ["npy", "parquet", "jsonl"])
def test_a_full_disk_leaves_the_finished_shards(
    magnet, folder, many, tmp_path, monkeypatch, format
):
    """Every write after a file's first 200 kB fails; the fourth shard is the first so large."""
    out = tmp_path / "out"
    options = ["--shard-size", 60, "--format", format]
    magnet("encode", folder, many, "-o", tmp_path / "whole", *options)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write_shard = vectors.ShardFolder.shard

    def filled_up(self):
        if len(self.manifest["shards"]) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        return write_shard(self)

    monkeypatch.setattr(vectors.ShardFolder, "shard", filled_up)
    try:
        result = magnet("encode", folder, many, "-o", out, *options, code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "3 finished shards with 180 rows stay in" in result.stderr
    assert f"File too large: '{out}/part-00003.{format}'" in result.stderr
    assert len(list(out.glob("part-*"))) == 3 and not list(out.glob(".*"))
    monkeypatch.undo()
    magnet("encode", folder, many, "-o", out, *options)
    assert files(out) == files(tmp_path / "whole")


def test_a_full_disk_leaves_a_single_file_as_it_was(magnet, folder, many, tmp_path):
    out = tmp_path / "v.npy"
    out.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        result = magnet("encode", folder, many, "-o", out, code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "File too large" in result.stderr and str(out) in result.stderr
    assert out.read_bytes() == b"before" and not list(tmp_path.glob(".*"))


def test_a_stop_between_a_shard_and_its_note_in_the_manifest(
    magnet, folder, many, tmp_path, stopped
):
    options = ["--shard-size", 60]
    magnet("encode", folder, many, "-o", tmp_path / "whole", *options)
    whole = files(tmp_path / "whole")
    out = tmp_path / "out"
    stopped("encode", folder, many, "-o", out, *options, after=2)
    (out / "part-00002.npy").write_bytes(b"written, not noted")
    (out / ".magnet-killed.partial").mkdir()
    (out / ".magnet-killed.partial" / "new.npy").write_bytes(b"half")
    with open(out / "skipped.jsonl", "a") as file:
        file.write('{"index": 599}\n')
    magnet("encode", folder, many, "-o", out, *options)
    assert files(out) == whole


def test_other_settings_and_other_input_are_refused(magnet, folder, many, texts, tmp_path, stopped):
    out = tmp_path / "out"
    options = ["--shard-size", 60]
    stopped("encode", folder, many, "-o", out, *options, after=2)
    before = files(out)
    for changed, message in (
        (["--normalize"], "normalize was False and is True"),
        (
            ["--prompt", "x"],
            "prompt was 'Given the sentence, find its representation: ' and is 'x'",
        ),
        (["--format", "parquet"], "format was 'npy' and is 'parquet'"),
        (["--shard-size", 61], "shard_size was 60 and is 61"),
        (["--dtype", "bfloat16"], "model was"),
    ):
        result = magnet("encode", folder, many, "-o", out, *options, *changed, code=2)
        assert "was started with other settings" in result.stderr and message in result.stderr
    result = magnet("encode", folder, texts, "-o", out, *options, code=2)
    assert "was started with another input, or it changed since" in result.stderr
    result = magnet("encode", folder, "-", "-o", out, *options, stdin="a\n", code=2)
    assert "standard input cannot be read again" in result.stderr
    assert files(out) == before
    magnet("encode", folder, many, "-o", out, *options, "--batch-size", 5, "--truncation")
    os.utime(many, (1, 1))
    result = magnet("encode", folder, many, "-o", out, *options, code=2)
    assert "it changed since" in result.stderr


def test_folders_that_are_none(magnet, folder, texts, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    result = magnet("encode", folder, texts, "-o", tmp_path / "full", code=2)
    assert "holds files but no manifest.json: give a new folder" in result.stderr
    (tmp_path / "file").write_text("mine")
    result = magnet("encode", folder, texts, "-o", tmp_path / "file", code=2)
    assert "or into a folder of shards" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"
    magnet("encode", folder, texts, "-o", f"{tmp_path}/new/v1.0/")
    assert (tmp_path / "new" / "v1.0" / "manifest.json").exists()


def test_one_process_at_a_time_writes_to_a_folder(
    magnet, folder, many, texts, tmp_path, stopped, monkeypatch
):
    """The second one is told who the first is, and touches nothing; a dead one's lock is none."""
    out = tmp_path / "out"
    options = ["--shard-size", 60]
    magnet("encode", folder, many, "-o", tmp_path / "whole", *options)
    stopped("encode", folder, many, "-o", out, *options, after=2)
    before = files(out)
    with folder_lock(out):
        result = magnet("encode", folder, many, "-o", out, *options, code=2)
        assert (
            f"{out} is in use by process {os.getpid()} on {socket.gethostname()}" in result.stderr
        )
        assert "wait until that is done, or give another folder" in result.stderr
        assert {name: content for name, content in files(out).items() if name != LOCK} == before
    (out / LOCK).write_text("process 1 on elsewhere")  # what a killed process leaves
    magnet("encode", folder, many, "-o", out, *options)
    assert files(out) == files(tmp_path / "whole")


def test_no_planted_link_is_followed(magnet, folder, many, tmp_path, stopped):
    out, mine = tmp_path / "out", tmp_path / "mine"
    stopped("encode", folder, many, "-o", out, "--shard-size", 60, after=2)
    mine.write_text("mine")
    (out / ".part-00002.npy.partial").symlink_to(mine)
    (out / "part-00002.npy").symlink_to(mine)
    magnet("encode", folder, many, "-o", out, "--shard-size", 60)
    assert mine.read_text() == "mine" and not (out / "part-00002.npy").is_symlink()
    for place, name in ((tmp_path / "a", "skipped.jsonl"), (tmp_path / "b", LOCK)):
        stopped("encode", folder, many, "-o", place, "--shard-size", 60, after=2)
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(mine)
        result = magnet("encode", folder, many, "-o", place, "--shard-size", 60, code=2)
        assert "symbolic link" in result.stderr and mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is damaged (JSONDecodeError: "),
        (lambda text: "", "is damaged (JSONDecodeError: "),
        (lambda text: "[]", "is damaged (TypeError: "),
        (lambda text: "{}", "is damaged (KeyError: 'magnet_version')"),
        (lambda text: text.replace('"settings": {', '"settings": 5, "x": {'), "settings is 5"),
        (
            lambda text: text.replace('"next_index"', '"next"'),
            "is damaged (KeyError: 'next_index')",
        ),
        (lambda text: text.replace("part-00001", "part-00009"), "lists part-00009.npy, which"),
    ],
)
def test_a_damaged_manifest_is_said(magnet, folder, many, tmp_path, stopped, damage, message):
    out = tmp_path / "out"
    stopped("encode", folder, many, "-o", out, "--shard-size", 60, after=2)
    path = out / "manifest.json"
    path.write_text(damage(path.read_text()))
    before = files(out)
    result = magnet("encode", folder, many, "-o", out, "--shard-size", 60, code=2)
    assert f"{path} " in result.stderr and message in result.stderr
    assert "give a new folder" in result.stderr and files(out) == before


def test_an_older_list_of_skipped_rows_stays_with_its_vectors(magnet, folder, many, tmp_path):
    out, listed = tmp_path / "v.npy", tmp_path / "v.npy.skipped.jsonl"
    magnet("encode", folder, many, "-o", out)
    before = files(tmp_path)
    assert len(listed.read_text().splitlines()) == 4
    many.write_text(many.read_text().replace("broken", '{"text": "' + "long " * 300 + '"}', 1))
    magnet("encode", folder, many, "-o", out, code=2)
    assert files(tmp_path) == before | {many.name: many.read_bytes()}
