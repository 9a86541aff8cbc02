"""The one command: every task, a baseline, a resumed run, failures, and what is said at the start."""

import json
import shutil

import pytest
from tiny import make_model

from evaluation import registry, run
from evaluation.common.figures import Figure
from evaluation.registry import TASKS, Suite, perplexity_ratio
from evaluation.report import draw
from evaluation.run import main

SMALL = Suite(
    pairs=20, titles=40, sentences=(4, 2), stories=3, paragraphs=3, long_paragraphs=2, prompted=2,
    continued=2, articles=1, blocks=2, questions=4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(registry.SUITES, "quick", SMALL)


def command(model, data, output, *more) -> list[str]:
    return [
        str(part)
        for part in ["--model", model, "--data", data, "--output", output, "--seed", 3, *more]
    ]


@pytest.fixture(scope="module")
def measured(magnet, data, tmp_path_factory):
    """All tasks, of a model and of three baselines of the same weights."""
    output = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.SUITES, "quick", SMALL)
        baselines = [f"{kind}:{magnet}" for kind in ("bidirectional", "echo")]
        status = main(command(magnet, data, output, "--baselines", *baselines))
    return output, status


def test_every_task_of_a_model_and_its_baselines(measured, magnet):
    output, status = measured
    assert status == 0
    results = json.loads((output / "results.json").read_text())
    assert results["failures"] == []
    done = [(record["model"].partition(":")[0], record["task"]) for record in results["results"]]
    kinds = {str(magnet): list(TASKS), "bidirectional": list(TASKS)}
    kinds["echo"] = ["sts", "clustering", "words"]
    assert done == [(kind, task) for kind, names in kinds.items() for task in names]
    for record in results["results"]:
        assert record["seed"] == 3 and record["versions"]["torch"] and record["seconds"] >= 0
        assert record["figures"], record["task"]
        for name, figure in record["figures"].items():
            assert figure["low"] <= figure["value"] <= figure["high"], (record["task"], name)
            assert figure["examples"] > 0
    report = (output / "report.md").read_text()
    assert all(f"## {name}\n" in report for name in TASKS) and "## Failed" not in report
    assert str(output.parent) not in report
    assert {path.name for path in output.glob("*.png")} == {
        "sts.png", "infilling.png", "windows.png",
    }  # fmt: skip


def test_the_same_weights_have_the_same_figures(measured):
    """`magnet` and `bidirectional` are one model on one path here, so one is the other's check."""
    records = json.loads((measured[0] / "results.json").read_text())["results"]
    figures: dict[str, list] = {}
    for record in records:
        figures.setdefault(record["task"], []).append(record["figures"])
    for name in set(TASKS) - {"sts"}:  # where a MAGNET model is measured with more prompts
        assert figures[name][0] == figures[name][1], name
    prompts = figures["sts"][0]
    assert list(prompts) == ["invented", "invented, default prompt", "invented, no prompt"]
    assert prompts["invented"] == figures["sts"][1]["invented"] != figures["sts"][2]["invented"]


def test_what_is_done_is_not_done_again(measured, magnet, data, monkeypatch, capsys):
    output, _ = measured
    before = (output / "results.json").read_text()
    loaded = []
    monkeypatch.setattr(run, "load_model", lambda *arguments: loaded.append(arguments))
    baselines = ["--baselines", f"bidirectional:{magnet}", f"echo:{magnet}"]
    assert main(command(magnet, data, output, *baselines)) == 0
    assert not loaded and (output / "results.json").read_text() == before
    assert f"{magnet}: causal is done already" in capsys.readouterr().out


def test_another_seed_other_weights_or_other_data_are_measured_anew(magnet, data, tmp_path):
    model, folder, output = tmp_path / "model", tmp_path / "data", tmp_path / "out"
    shutil.copytree(magnet, model)
    shutil.copytree(data, folder)

    def seconds_and_figures(*more):
        arguments = command(model, folder, output, "--tasks", "causal", *more)
        assert main(arguments) == 0
        path = next((output / "results.json").parent.glob("*/causal.json"))
        return path.stat().st_mtime_ns, json.loads(path.read_text())["figures"]

    found = [seconds_and_figures()]
    assert seconds_and_figures() == found[0]
    found.append(seconds_and_figures("--seed", "4"))
    make_model(seed=1, max_position_embeddings=2048).save_pretrained(model)
    found.append(seconds_and_figures("--seed", "4"))
    text = folder / "wikitext-103" / "wiki.valid.tokens"
    text.write_text(text.read_text().replace("cat", "dog"))
    found.append(seconds_and_figures("--seed", "4"))
    assert len({when for when, _ in found}) == 4
    assert found[1][1] != found[2][1] != found[3][1]


def test_a_model_that_does_not_load_is_tried_once(magnet, data, tmp_path, monkeypatch):
    """Its tasks fail with the reason, and the other models are measured all the same."""
    load, tried = run.load_model, []

    def broken(name, *options):
        tried.append(name)
        if name == str(magnet):
            raise OSError("a shard is cut off")
        return load(name, *options)

    monkeypatch.setattr(run, "load_model", broken)
    more = ["--tasks", "causal", "words", "--baselines", f"echo:{magnet}"]
    assert main(command(magnet, data, tmp_path, *more)) == 1
    assert tried == [str(magnet), f"echo:{magnet}"]
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(one["task"], one["error"]) for one in found["failures"]] == [
        (task, "OSError: a shard is cut off") for task in ("causal", "words")
    ]
    assert [one["task"] for one in found["results"]] == ["words"]


def test_a_task_that_fails_leaves_the_others(magnet, data, tmp_path, capsys):
    """No paragraph is long enough for a long span, which only the tokenizer can tell."""
    folder, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, folder)
    text = folder / "wikitext-103" / "wiki.valid.tokens"
    text.write_text("A short paragraph about boats, that ends here.\n" * 60)
    assert main(command(magnet, folder, output, "--tasks", "span-length", "causal")) == 1
    results = json.loads((output / "results.json").read_text())
    assert [record["task"] for record in results["results"]] == ["causal"]
    (failure,) = results["failures"]
    assert failure["task"] == "span-length" and "no text has 256 to 512" in failure["error"]
    assert "span-length FAILED" in capsys.readouterr().err
    assert "## Failed" in (output / "report.md").read_text()


def test_what_is_wrong_is_said_before_a_model_is_loaded(
    magnet, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "load_model", lambda *_: pytest.fail("a model was loaded"))
    bare, folder, short = tmp_path / "bare", tmp_path / "data", tmp_path / "short"
    shutil.copytree(magnet, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    make_model().save_pretrained(short)
    shutil.copytree(data, folder)
    (folder / "rocstories" / "dev.tsv").write_text("sentence1\tsentence2\n")
    (folder / "wikitext-103" / "wiki.valid.tokens").write_text(" = Harbour = \n")
    shutil.rmtree(folder / "lm")
    (folder / "conll2003" / "eng.train").write_text("boat NN I-NP\n")
    for model, place, task, message in (
        (bare, data, "causal", "tokenizer in"),
        (short, data, "causal", "reads at most 256 tokens, the task causal needs 512"),
        (f"fish:{magnet}", data, "sts", "has the kind 'fish'"),
        (tmp_path / "nothing", data, "sts", "nothing"),
        (magnet, tmp_path / "nowhere", "sts", "which is not a folder"),
        (magnet, folder, "prompting", "it lacks ['sentence3', 'sentence4', 'sentence5']"),
        (magnet, folder, "causal", "has no paragraphs"),
        (magnet, folder, "choices", "has no lm/*.jsonl: add it, or choose other --tasks"),
        (magnet, folder, "words", "line 1: got 3 columns"),
    ):  # fmt: skip
        assert main(command(model, place, tmp_path / "out", "--tasks", task)) == 2, message
        assert message in capsys.readouterr().err
    baseline = ["--tasks", "sts", "--baselines", f"encoder:{magnet}"]
    assert main(command(magnet, data, tmp_path / "out", *baseline)) == 2
    assert "is a decoder (llama), no encoder" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.json"))


def test_without_a_folder_what_the_hub_has_not_is_said(magnet, tmp_path, capsys):
    arguments = ["--model", str(magnet), "--output", str(tmp_path), "--tasks", "prompting"]
    assert main(arguments) == 2
    assert "ROC Stories are not on the Hub" in capsys.readouterr().err


def test_ratio_of_two_perplexities_of_the_same_texts():
    one = {"tokens": [2, 3], "both_sides": [2.0, 3.0]}
    other = {"tokens": [2, 3], "left_only": [4.0, 6.0]}
    ratio = perplexity_ratio(one, "both_sides", other, "left_only")
    assert ratio.value == pytest.approx(2.718281828 ** ((5 - 10) / 5))
    assert ratio.low == pytest.approx(ratio.value) == ratio.high  # as much better on each text
    with pytest.raises(ValueError, match="measured on other spans"):
        perplexity_ratio(one, "both_sides", other | {"tokens": [3, 2]}, "left_only")


def test_plots_show_what_there_is(tmp_path):
    figure = Figure(50, 40, 60, 9)
    tables = {"sts": {"a": {"X": figure}, "b": {"X": figure, "Y": figure}}, "infilling": {}}
    assert [path.name for path in draw(tmp_path, tables)] == ["sts.png"]
    spans = {f"{n} tokens, {view}": figure for n in (8, 16) for view in ("both sides", "left only")}
    assert [path.name for path in draw(tmp_path, {"span-length": {"a": spans}})] == [
        "infilling.png"
    ]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.glob("*.png"))
