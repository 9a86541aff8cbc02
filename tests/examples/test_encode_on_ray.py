"""A corpus encoded on a real local Ray of two workers, of which one is killed."""

import json
import threading
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from tiny import SENTENCES, make_model

from modeling_magnet import load_magnet

ray = pytest.importorskip("ray", reason='pip install -e ".[ray]"')
from examples import encode_on_ray  # noqa: E402


@pytest.fixture
def desk(tmp_path):
    """A model, and a corpus of three files, long enough to be killed in."""
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "corpus").mkdir()
    for name, rows in (("a", 5), ("b", 1500), ("c", 1500)):
        texts = [f"{SENTENCES[i % 5]} {name} {i}" for i in range(rows)]
        parquet.write_table(pa.table({"text": texts}), tmp_path / "corpus" / f"{name}.parquet")
    return tmp_path


def run(desk, *arguments):
    folders = [str(desk / "model"), str(desk / "corpus"), "--output", str(desk / "out")]
    encode_on_ray.main([*folders, "--workers", "2", *arguments])


def kill_a_writer(out, killed: list):
    """End the first process that is seen to write a shard."""
    while not killed:
        for process in psutil.Process().children(recursive=True):
            try:
                files = [file.path for file in process.open_files()]
                if any(path.startswith(str(out)) and path.endswith("parquet") for path in files):
                    process.kill()
                    killed.append(process.pid)
                    return
            except psutil.Error:  # it ended meanwhile
                continue
        time.sleep(0.02)


@pytest.fixture
def local_ray():
    """Of two processors, so of two workers."""
    ray.init(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def one_file_done(desk, monkeypatch):
    """What a run leaves that is stopped after its first file."""

    def stopped(todo, *_, model, encoding, identity):
        worker = encode_on_ray.EncodeFiles(model, encoding, identity)
        worker({name: [todo[0][name]] for name in ("file", "output")})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encode_on_ray, "encode", stopped)
        run(desk)
    return desk


def test_a_killed_worker_loses_nothing(one_file_done, local_ray, capfd):
    out = one_file_done / "out"
    assert [path.name for path in out.glob("*.parquet")] == ["a.parquet"]
    finished = (out / "a.parquet").stat()
    killed: list[int] = []
    threading.Thread(target=kill_a_writer, args=(out, killed), daemon=True).start()
    run(one_file_done)
    assert len(killed) == 1 and not psutil.pid_exists(killed[0])
    assert "1 of 3 files were encoded already" in capfd.readouterr().out
    assert (out / "a.parquet").stat() == finished  # left alone
    names = sorted(path.name for path in out.iterdir())
    assert names == ["a.parquet", "b.parquet", "c.parquet", "manifest.json"]  # nothing half-written

    model = load_magnet(one_file_done / "model").eval()
    for name in "abc":
        texts = parquet.read_table(one_file_done / "corpus" / f"{name}.parquet")["text"].to_pylist()
        found = parquet.read_table(out / f"{name}.parquet")
        assert found["index"].to_pylist() == list(range(len(texts)))
        vectors = np.stack(found["vector"].to_numpy())
        assert abs(vectors - model.encode(texts)).max() < 1e-5


def test_what_would_mix_vectors_is_refused(one_file_done):
    with pytest.raises(SystemExit, match="started with another normalize: give a new folder"):
        run(one_file_done, "--normalize")
    make_model(seed=1).save_pretrained(one_file_done / "model")
    with pytest.raises(SystemExit, match="started with another model"):
        run(one_file_done)
    make_model(seed=0).save_pretrained(one_file_done / "model")
    corpus = one_file_done / "corpus"
    parquet.write_table(pa.table({"text": ["other"]}), corpus / "a.parquet")
    with pytest.raises(SystemExit, match=r"a.parquet changed since .* was started"):
        run(one_file_done)
    manifest = json.loads((one_file_done / "out" / "manifest.json").read_text())
    assert len(manifest["inputs"]) == 3
    (corpus / "a.jsonl").write_text('{"text": "The same name."}\n')
    with pytest.raises(SystemExit, match=r"two files of the corpus would both become .*a.parquet"):
        run(one_file_done)
    with pytest.raises(ValueError, match="b.parquet is both input and output"):
        encode_on_ray.main(
            [str(one_file_done / "model"), str(corpus / "b.parquet"), "--output", str(corpus)]
        )
    with pytest.raises(ValueError, match="another model on this machine"):
        encode_on_ray.EncodeFiles(str(one_file_done / "model"), encode_on_ray.Encoding(), {})
