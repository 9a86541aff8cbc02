"""Sentence figures during a run, and the best checkpoint by them."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_model import add_lora
from tiny import SENTENCES, make_model

from modeling_magnet import load_magnet
from modeling_magnet.training import MagnetConfig, MagnetTrainer, SentenceEvaluation
from modeling_magnet.training.metrics import spearman

PAIRS = Dataset.from_dict({"anchor": SENTENCES, "positive": [text.lower() for text in SENTENCES]})
SCORES = [0.5, 3.0, 1.5, 4.0, 2.0]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "quick.tsv"
    rows = zip(SCORES, SENTENCES, SENTENCES[1:] + SENTENCES[:1])
    lines = ["score\tsentence1\tsentence2", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def figure(model) -> float:
    one, two = (
        model.encode(texts, normalize_embeddings=True)
        for texts in (SENTENCES, SENTENCES[1:] + SENTENCES[:1])
    )
    return spearman((one * two).sum(1), np.array(SCORES))


def trainer(model, tmp_path, table, **changes):
    settings = {
        "max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps",
        "save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_quick",
        "greater_is_better": True, "learning_rate": 3e-2, "per_device_train_batch_size": 5,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return MagnetTrainer(
        model, MagnetConfig(output_dir=str(tmp_path / "run"), **settings), train_dataset=PAIRS,
        eval_dataset=PAIRS, callbacks=[SentenceEvaluation(table)], **changes,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["all weights", "a new adapter", "its own adapter"])
def test_the_best_checkpoint_by_a_table_is_kept(tmp_path, table, kind):
    make_model().save_pretrained(tmp_path / "base")
    place, changes = tmp_path / "base", {}
    if kind == "a new adapter":
        changes = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    elif kind == "its own adapter":
        place = tmp_path / "adapter"
        adapted = add_lora(load_magnet(tmp_path / "base"))
        adapted.save_pretrained(place)
        adapted.tokenizer.save_pretrained(place)
    run = trainer(str(place), tmp_path, table, **changes)
    run.train()
    found = {
        line["step"]: line["eval_quick"] for line in run.state.log_history if "eval_quick" in line
    }
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert max(found.values()) > min(found.values())  # not all are alike
    best = max(found, key=lambda step: (found[step], -step))
    assert run.state.best_metric == found[best] and run.state.best_global_step == best
    run.save_model(str(tmp_path / "best"))
    assert figure(load_magnet(tmp_path / "best").eval()) == pytest.approx(found[best])


def test_a_task_of_mteb_gives_its_main_score_and_leaves_randomness_alone(table):
    pytest.importorskip("mteb")
    from evaluation.tasks.sentences import _sts_task

    model, metrics = make_model(), {}
    state = type("State", (), {"log_history": [], "epoch": 0.5, "global_step": 3})
    before = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    SentenceEvaluation(_sts_task(str(table))).on_evaluate(
        None, state, None, metrics=metrics, model=model
    )
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected != before
    assert metrics["eval_quick"] == pytest.approx(figure(model))
    assert state.log_history == [{"epoch": 0.5, "step": 3, **metrics}]


def test_two_tables_of_the_same_name_are_refused(table, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "quick.tsv").write_bytes(table.read_bytes())
    with pytest.raises(ValueError, match="two files would both be called"):
        SentenceEvaluation(table, tmp_path / "other" / "quick.tsv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\n1\t2\n", "has no rows with score, sentence1, sentence2"),
        ("score\tsentence1\tsentence2\n", "has no rows with score"),
        ("score\tsentence1\tsentence2\nhigh\ta\tb\n", "a score that is not a number"),
        ("score\tsentence1\tsentence2\n1\ta\tb\n1\tc\td\n", r"all scores of .* are 1.0"),
        ("score\tsentence1\tsentence2\n1\ta\tb\nnan\tc\td\n", "NaN or infinity"),
        ("score\tsentence1\tsentence2\n1\ta\tb\n2\tc\n", "line 3, lacks a sentence"),
    ],
)
def test_a_table_that_says_nothing_is_refused(tmp_path, content, message):
    (tmp_path / "quick.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        SentenceEvaluation(tmp_path / "quick.tsv")
