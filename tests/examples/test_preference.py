"""trl's trainers on a Magnet folder: what comes back still encodes, infills and generates."""

import json
from pathlib import Path

import numpy as np
import pytest
from documents import printed_table, run_blocks
from test_model import add_lora
from tiny import SENTENCES, make_model

from evaluation.common.figures import Figure
from modeling_magnet import load_magnet

pytest.importorskip("trl", reason='pip install -e ".[trl]"')
from examples import preference
from examples.measuring import Measured

ROOT = Path(__file__).parents[2]


def first_number(model, count: int) -> Measured:
    value = 1e4 * float(model.encode("A cat.")[0])
    return Measured({"first number": Figure(value, value, value, 1)}, np.zeros(1))


def save_adapter(folder: Path) -> None:
    """A base, and an adapter on it with settings of its own."""
    make_model(max_position_embeddings=512).save_pretrained(folder / "base")
    model = load_magnet(folder / "base")
    settings = model.magnet_settings.to_dict()
    adapted = add_lora(model)
    adapted.save_pretrained(folder / "adapter")
    make_model().tokenizer.save_pretrained(folder / "adapter")
    config = json.loads((folder / "base" / "config.json").read_text())
    config["magnet"] = settings | {"pooling": "mean", "trained_length": 96}
    (folder / "adapter" / "config.json").write_text(json.dumps(config))


def test_the_page_runs_and_all_three_jobs_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_adapter(tmp_path / "outputs" / "mine")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 4) + "\n")
    left = run_blocks(ROOT / "docs" / "how-to" / "sft-dpo.md", run_commands=True)
    whole = load_magnet("outputs/whole").eval()
    tuned, held = left["tuned"], load_magnet("outputs/held").eval()
    assert tuned.magnet_settings.pooling == "mean"  # the adapter's settings came through
    assert left["vectors"].shape == (2, 48) and isinstance(left["text"], str)
    for model in (tuned, held):
        assert abs(model.encode(SENTENCES) - whole.encode(SENTENCES)).max() > 1e-4  # trained
        assert isinstance(model.infill("The old", " was quiet.", span_length=3), str)
    now = left["dpo"].model.eval().encode(SENTENCES)
    np.testing.assert_allclose(load_magnet("outputs/preferred").encode(SENTENCES), now, atol=1e-6)


def test_preference(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        preference, "measure", first_number
    )  # the real one is tested in test_scripts
    save_adapter(tmp_path)
    pairs = [{"prompt": f"Q {i}?", "chosen": f" A {i}.", "rejected": " No."} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    preference.main([
        "--model", str(tmp_path / "adapter"), "--pairs", str(tmp_path / "pairs.jsonl"),
        "--steps", "1", "--hold-steps", "1", "--batch-size", "2", "--count", "2",
        "--output", str(tmp_path / "out"),
    ])  # fmt: skip
    figures = printed_table(capsys.readouterr().out)
    assert list(figures) == ["chosen answer preferred, %", "first number"]
    assert len({*figures["first number"][:3]}) == 3  # each stage trained
    settings = load_magnet(tmp_path / "out" / "model").magnet_settings
    assert (settings.pooling, settings.trained_length) == ("mean", 96)


def test_the_pairs_are_of_two_articles():
    rows = preference.sample("wiki-train.jsonl")
    assert len(rows) > 500 and all(row["chosen"] != row["rejected"] for row in rows)
    assert all(row["chosen"].startswith(" ") and row["prompt"].endswith(".") for row in rows)
