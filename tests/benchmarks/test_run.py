"""The one command on a tiny model: its rows, its files, a second run; ways that differ; ways that fail."""

import dataclasses
import json

import numpy as np
import processes
import pytest
import torch
from tiny import make_model
from tqdm import tqdm

from benchmarks import encode, infill, llm2vec_environment, run, scale, startup, train
from benchmarks.report import Row, table
from benchmarks.setup import SUITES, Sizes
from benchmarks.texts import dealt, read_texts
from benchmarks.timing import (
    Comparison,
    DifferentResultsError,
    Worker,
    measure,
    same_figure,
    same_vectors,
)
from modeling_magnet import load_magnet

PARTS = ["encode", "infill", "train", "large"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model"
    make_model(max_position_embeddings=4096).save_pretrained(path)
    return path


def command(folder, output, *more) -> list[str]:
    return [
        *("--suite", "tiny", "--here", "--no-llm2vec"),
        *("--model", str(folder), "--output", str(output), *more),
    ]


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmarks")
    assert run.main(command(folder, output, "--parts", *PARTS)) == 0
    return output


def test_rows_and_files(measured):
    results = json.loads((measured / "results.json").read_text())
    rows = {row["label"]: row for row in results["rows"]}
    written = (measured / "table.md").read_text()
    for label, row in rows.items():
        assert f"| {label} | {row['ours']} |" in written
    measured_rows = [label for label, row in rows.items() if row["value"] is not None]
    firsts = {label.split(",")[0].split(":")[0].split(" of ")[0] for label in measured_rows}
    assert firsts == {"encode", "infill", "training step", "random Llama"}
    for label, row in rows.items():
        unknown = "llm2vec" in label or "memory" in label or "import" in label or "mask of" in label
        assert (row["ours"] == "not measured") == unknown, label
    assert rows["encode, mixed: sentences/s (tokens/s); llm2vec"]["aim"] == ">= 1.5"
    assert "llm2vec is not measured: left out by --no-llm2vec" in written
    for part in PARTS:
        record = json.loads((measured / f"{part}.json").read_text())
        assert record["machine"]["torch"] == torch.__version__ and record["machine"]["threads"] >= 1
        assert record["found"]["timings"]
    assert not (measured / "startup.json").exists()
    for plot in ("encode-length.png", "encode-batch.png"):
        assert (measured / plot).stat().st_size > 1000


def test_each_ratio_is_of_the_medians_of_all_rounds(measured):
    found = json.loads((measured / "encode.json").read_text())["found"]
    (row,) = [
        row
        for row in encode.rows(found, SUITES["tiny"])
        if row.label == "encode, short: sentences/s (tokens/s); plain loop"
    ]
    speeds = []
    for way in ("Magnet", "plain loop"):
        answers = found["timings"]["short"][way]
        assert len(answers) == SUITES["tiny"].rounds
        assert found["work"]["short"]["texts"] == [3, 3]
        speeds.append([3 / given["seconds"] for given in answers])
    assert row.value == pytest.approx(np.median(speeds[0]) / np.median(speeds[1]))
    ratios = [a / b for a, b in zip(*speeds)]
    assert (row.low, row.high) == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))


def test_a_second_run_measures_nothing_and_another_command_is_refused(measured, folder, capsys):
    before = {part: (measured / f"{part}.json").stat().st_mtime_ns for part in PARTS}
    table_before = (measured / "table.md").read_text()
    (measured / "table.md").unlink()
    assert run.main(command(folder, measured, "--parts", *PARTS)) == 0
    assert (measured / "table.md").read_text() == table_before
    assert {p: (measured / f"{p}.json").stat().st_mtime_ns for p in PARTS} == before
    assert run.main(command(folder, measured, "--sentences", "8")) == 2
    assert "is of a run with sizes" in capsys.readouterr().err
    assert run.main(command(folder, measured / "other", "--sentences", "1")) == 2
    assert "--sentences is 1: give 2 or more" in capsys.readouterr().err


def test_holds():
    assert Row.of_rounds("a", [2, 3, 4], [1, 1, 1], ">= 3").holds is True
    assert Row.of_rounds("a", [2, 3, 4], [1, 1, 1], "<= 2.9").holds is False
    assert Row.of_rounds("a", [2, 3], [1, 1]).holds is None
    assert Row.missing("a", ">= 1").holds is None
    lines = table(
        [Row.of_rounds("a", [2, 3, 4], [1, 2, 1], ">= 3"), Row.alone("b", 61.0, aim=">= 60")]
    )
    assert lines.splitlines()[2:] == [
        "| a | 3 | 1 | 3.00 (1.50 to 4.00) | >= 3 | yes |",
        "| b | 61 |  |  | >= 60 | yes |",
    ]


def compared(results, check):
    runs = {way: [lambda found=found: {"seconds": 1.0, **found}] for way, found in results.items()}
    with tqdm(disable=True) as bar:
        return measure([Comparison("c", runs, check)], bar)


def test_ways_that_differ_raise():
    vectors = np.eye(3, 4) + 1
    turned = vectors.copy()
    turned[1] = turned[1][::-1]
    same = compared({"a": {"vectors": vectors}, "b": {"vectors": 2 * vectors}}, same_vectors(1e-6))
    assert same == {"c": {"a": [{"seconds": 1.0}], "b": [{"seconds": 1.0}]}}
    for other, message in (
        (turned, "cosine .* for text 1"),
        (vectors[:2], "shape"),
        (np.full_like(vectors, np.nan), "cosine nan"),
    ):
        with pytest.raises(DifferentResultsError, match=message):
            compared({"a": {"vectors": vectors}, "b": {"vectors": other}}, same_vectors(1e-6))
    compared({"a": {"loss": 2.0}, "b": {"loss": 2.0001}}, same_figure("loss", 1e-4))
    for wrong in (2.001, float("nan")):
        with pytest.raises(DifferentResultsError, match="loss is"):
            compared({"a": {"loss": 2.0}, "b": {"loss": wrong}}, same_figure("loss", 1e-4))
    span = {"tokens": [[5, 6, 7]]}
    infill.same_tokens({"infill": span, "uncached": {"tokens": [[5, 6]]}})
    with pytest.raises(DifferentResultsError, match="in place"):
        infill.same_tokens({"infill": span, "uncached": {"tokens": [[5, 7]]}})


def test_a_wrong_way_fails_its_part_and_loses_nothing_else(folder, tmp_path, monkeypatch, capsys):
    """The two training steps must be the same: one that leaves out what MSG learns is caught."""
    loss = train._straightforward_loss

    def without_msg(model, inner, batch):
        return loss(model, inner, batch | {"msg_labels": batch["mntp_labels"]})

    monkeypatch.setattr(train, "_straightforward_loss", without_msg)
    assert run.main(command(folder, tmp_path, "--parts", "train", "large")) == 1
    assert "train failed: loss is" in capsys.readouterr().err
    assert not (tmp_path / "train.json").exists()
    assert (tmp_path / "large.json").exists()
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["ours"] == "not measured" for row in rows if "step" in row["label"]} == {
        True,
        False,
    }


def test_the_suite_for_a_gpu_runs_in_small_and_has_every_row(folder, tmp_path, monkeypatch, capsys):
    """On this machine's CPU: its parts and rows, whatever their size; what starts is a fork."""

    def run_fork(statement):
        done = processes.run("-c", startup.TIMED.format(statement))
        return {"seconds": float(done.stdout.splitlines()[-1])}

    monkeypatch.setattr(startup, "run_fresh", run_fork)
    small = dataclasses.asdict(SUITES["tiny"])
    gpu = SUITES["gpu"]
    assert gpu.parts[0] == "large" and set(gpu.parts) == set(run.PARTS)
    small |= {"parts": gpu.parts, "backends": ("sdpa", "eager"), "large": SUITES["tiny"].large}
    monkeypatch.setitem(SUITES, "gpu", Sizes(**small))
    asked = command(folder, tmp_path, "--suite", "gpu")
    assert run.main(asked) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    missing = [row["label"] for row in rows if row["ours"] == "not measured"]
    assert all("llm2vec" in label or "memory" in label for label in missing), missing
    labels = " ".join(row["label"] for row in rows)
    for part in ("encode at 512", "the paper's step", "static cache", "eager: seconds; sdpa"):
        assert part in labels
    assert "sentence-transformers" in labels and "`generate`" in labels


def test_a_statement_is_timed_in_a_new_process():
    assert startup.run_fresh("import json")["seconds"] > 0
    with pytest.raises(RuntimeError, match="import nothing_there: Traceback"):
        startup.run_fresh("import nothing_there")


def test_a_suite_without_its_device_or_a_part_says_so(folder, tmp_path, capsys):
    assert run.main(command(folder, tmp_path, "--parts", "attention")) == 2
    assert "the suite tiny has no part attention" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert run.main(command(folder, tmp_path, "--suite", "gpu")) == 2
        assert "needs a CUDA device" in capsys.readouterr().err


def test_a_process_of_its_own_measures_its_memory_and_says_why_it_failed(folder):
    place = {"model": str(folder), "device": "cpu", "dtype": "float32", "before": "", "after": ""}
    worker = Worker("benchmarks.encode:magnet", **place)
    try:
        found = worker(vectors=True, texts=["A cat sleeps.", "It rains."])
        expected = load_magnet(folder).encode(["A cat sleeps.", "It rains."])
        np.testing.assert_allclose(found["vectors"], expected, atol=1e-5)
        assert found["seconds"] > 0 and 100 < found["peak_mib"] < 10_000
        with pytest.raises(RuntimeError, match=r"magnet ended with status 1(.|\n)*text 0 is int"):
            worker(texts=[1])
    finally:
        worker.close()


def test_the_folder_for_llm2vec_is_the_same_llama(folder, tmp_path):
    llm2vec_environment.write_folder(folder, tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    assert config["rope_theta"] == 10000.0 and "magnet" not in config and "auto_map" not in config
    tokenizer = json.loads((tmp_path / "old/tokenizer.json").read_text())
    assert all(isinstance(pair, str) for pair in tokenizer["model"]["merges"])
    link = tmp_path / "old/model.safetensors"
    assert link.read_bytes() == (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="Llamas with plain ones"):
        llm2vec_environment.write_folder(tmp_path / "other", tmp_path / "no")


def test_texts():
    texts = read_texts([])
    assert all(3 <= len(text.split()) <= 10 for text in texts.short)
    assert all(230 <= len(text.split()) <= 540 for text in texts.documents)
    assert len(texts.some("mixed", 2000)) == 2000 and len(texts.some("documents", 200)) == 200
    with pytest.raises(ValueError, match="give more by --text"):
        texts.some("short", 100_000)
    parts = dealt(texts.mixed[:9], 3)
    assert sorted(text for part in parts for text in part) == sorted(texts.mixed[:9])
    means = [np.mean([len(text) for text in part]) for part in parts]
    assert max(means) < 1.3 * np.mean([len(text) for text in texts.mixed[:9]])


def test_the_cost_model_counts_what_the_model_does(tiny):
    """FLOPs by torch's own counter; parameters by the model's."""
    from torch.utils.flop_counter import FlopCounterMode

    c = tiny.config
    shape = scale.Shape(
        c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.vocab_size,
    )  # fmt: skip
    matrices = [p.numel() for p in tiny.model.layers.parameters() if p.dim() == 2]
    assert shape.decoder == sum(matrices)
    tiny.set_attn_implementation("eager")
    ids = torch.randint(3, 300, (1, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny.pool(ids[:, :62], torch.ones(1, 62, dtype=torch.long))
    counted = counter.get_total_flops() / 64
    assert scale.encode_flops(shape, 64) == pytest.approx(counted, rel=0.01)
    seven = scale.SHAPES["Llama-2-7B"]
    assert seven.decoder + 2 * seven.head == pytest.approx(6.738e9, rel=0.001)
    utilisation = scale.paper_run(seven) / (7 * 3600) / 312e12
    assert utilisation == pytest.approx(0.28, abs=0.01)  # 7 hours on an A100, the paper says


def test_scale_prints_its_assumptions(capsys):
    scale.main(["--sentences", "1e6", "--encode", "0.25"])
    printed = capsys.readouterr().out
    assert "Projections, not measurements" in printed and "encode 0.25" in printed
    assert "| Llama-3.1-70B | 22.9 | " in printed and "does not fit" in printed
    with pytest.raises(SystemExit):
        scale.main(["--train", "40"])
