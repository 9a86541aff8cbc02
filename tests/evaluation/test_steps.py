"""Ablations are trained, measured and collected; checkpoints are measured against their steps."""

import json

import pytest
import yaml
from processes import run
from tiny import SENTENCES, make_model

from evaluation import registry
from evaluation.common.figures import Figure
from evaluation.registry import SUITES
from evaluation.studies import ablations, steps
from modeling_magnet import MagnetLlamaForCausalLM


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A config of a tiny run, and one to go over an ablation's."""
    folder = tmp_path_factory.mktemp("training")
    make_model(max_position_embeddings=2048).save_pretrained(folder / "base")
    text, pairs = folder / "text.jsonl", folder / "pairs.jsonl"
    text.write_text((json.dumps({"text": " ".join(SENTENCES)}) + "\n") * 40)
    pairs.write_text(
        "".join(json.dumps({"sentence": s, "paraphrase": s.lower()}) + "\n" for s in SENTENCES * 2)
    )
    first = {
        "model": str(folder / "base"), "start_token": "<s>", "lora_r": 4, "text": [str(text)],
        "pairs": [str(pairs)], "validation_text": [str(text)], "validation_pairs": [str(pairs)],
        "validation_blocks": 4, "validation_pair_count": 4, "block_length": 40, "pair_length": 48,
        "max_span_length": 8, "pairs_per_block": 1, "per_device_train_batch_size": 4,
        "learning_rate": 5e-3, "token_cache": str(folder / "tokens"), "disable_tqdm": True,
        "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    over = {"max_steps": 4, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    for name, content in (("first", first), ("over", over)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return [str(folder / "first.yaml"), str(folder / "over.yaml")]


@pytest.fixture(scope="module")
def ablated(configs, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("ablations")
    small = SUITES["quick"].__class__(10, 10, (4, 2), 2, 2, 1, 1, 1, 1, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.SUITES, "quick", small)
        patch.setattr(ablations.subprocess, "run", lambda command, **_: run(*command[1:]))
        command = ["--configs", *configs, "--ablations", "mntp", "mtp", "--output", str(output)]
        command += ["--data", str(data), "--tasks", "causal"]
        status = ablations.main(command)
        trained = {p: p.stat().st_mtime_ns for p in output.glob("*/model/*.safetensors")}
        assert ablations.main(command) == status
        assert trained == {p: p.stat().st_mtime_ns for p in output.glob("*/model/*.safetensors")}
    return output, status


def test_ablations_are_rows_of_a_table(ablated):
    output, status = ablated
    assert status == 0
    head, _, row = (output / "ablations.md").read_text().splitlines()
    assert head == "| | mntp | base | mtp | n |" and row.startswith("| WikiText-103 |")
    figures = row.split(" | ")[1:4]
    assert len(set(figures)) == 3  # three models
    assert (output / "masked-tokens.png").stat().st_size > 1000


def test_a_missing_file_is_said_before_training(configs, tmp_path, capsys):
    command = ["--configs", *configs, "--ablations", "mntp", "--output", str(tmp_path / "out")]
    assert ablations.main([*command, "--data", str(tmp_path), "--tasks", "causal"]) == 2
    assert "has no wikitext-103/wiki.test.tokens or" in capsys.readouterr().err
    assert not (tmp_path / "out" / "mntp").exists()


def test_figures_against_steps(ablated, data, tmp_path, monkeypatch):
    runs = [str(ablated[0] / name) for name in ("mntp", "mtp")]
    command = ["--runs", *runs, "--output", str(tmp_path), "--data", str(data), "--tasks", "causal"]
    assert steps.main(command) == 0
    head, _, row = (tmp_path / "steps.md").read_text().splitlines()
    assert head == "| | mntp, 0 | mntp, 2 | mntp, 4 | mtp, 0 | mtp, 2 | mtp, 4 | n |"
    values = [float(cell.split()[0]) for cell in row.split(" | ")[1:7]]
    assert values[0] == values[3]  # one base
    assert len(set(values)) == 5
    assert (tmp_path / "steps.png").stat().st_size > 1000
    adapter = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "adapters" / "mntp-4")
    merged = MagnetLlamaForCausalLM.from_pretrained(ablated[0] / "mntp" / "model")
    vectors = [model.encode(SENTENCES) for model in (adapter, merged)]
    assert abs(vectors[0] - vectors[1]).max() < 1e-4  # the last checkpoint is the run's model


def test_steps_that_are_not_there_are_said(ablated, tmp_path, capsys):
    command = ["--output", str(tmp_path), "--tasks", "causal", "--data", str(tmp_path)]
    assert steps.main(["--runs", str(ablated[0] / "mntp"), "--steps", "3", *command]) == 2
    assert "mntp has the checkpoints [2, 4]" in capsys.readouterr().err
    assert steps.main(["--runs", str(tmp_path), *command]) == 2
    assert "has no base/" in capsys.readouterr().err
    other = tmp_path / "mntp"
    assert steps.main(["--runs", str(ablated[0] / "mntp"), str(other), *command]) == 2
    assert "two runs are named mntp" in capsys.readouterr().err


def test_curves_of_several_runs(tmp_path):
    figure = Figure(1, 0.5, 2, 9)
    records = [
        {"model": model, "task": "causal", "figures": {"text": figure._asdict()}}
        for model in ("base", "one", "two")
    ]
    models = {
        "base": {"run": "a", "step": 0},
        "one": {"run": "a", "step": 5},
        "two": {"run": "b", "step": 5},
    }
    curves = steps.curves_of(records, models)
    assert curves == {"causal: text": {"a": [(0, figure), (5, figure)], "b": [(5, figure)]}}
    assert steps.write_curves(tmp_path, curves).startswith("| | a, 0 | a, 5 | b, 5 | n |")
