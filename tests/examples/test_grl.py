"""The three losses of generation-augmented representation learning, against plain loops."""

import json
import math

import numpy as np
import pytest
import torch
from documents import printed_table
from peft import LoraConfig
from tiny import SENTENCES, make_model

from evaluation.common.figures import Figure
from modeling_magnet import load_magnet

pytest.importorskip("trl", reason='pip install -e ".[trl]"')
from trl import DPOConfig, DPOTrainer

from examples import grl
from examples.measuring import Measured
from examples.preference import log_probability

TRIPLETS = [
    {"anchor": f"Q {i}?", "positive": SENTENCES[i], "negative": SENTENCES[i + 1][::-1]}
    for i in range(3)
]
TEMPERATURE = 0.5


def cosine(one, two) -> float:
    return float(one @ two / (one @ one) ** 0.5 / (two @ two) ** 0.5)


def test_the_loss_is_contrastive_and_dpo_and_the_divergence_of_both_scores(tmp_path):
    model = make_model()
    trainer = grl.GRLTrainer(
        model=model, contrastive=2.0, divergence=3.0, temperature=TEMPERATURE,
        args=DPOConfig(str(tmp_path), per_device_train_batch_size=3, bf16=False, use_cpu=True, report_to="none"),
        train_dataset=grl.preferences(TRIPLETS), processing_class=model.tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    whole = trainer.compute_loss(trainer.model, batch).detach()
    preference = DPOTrainer.compute_loss(trainer, trainer.model, batch).detach()

    inner = trainer.model.get_base_model()
    prompts = [inner.tokenizer.decode(row[mask.bool() & ~answer.bool()]) for row, mask, answer in zip(
        batch["input_ids"][:3], batch["attention_mask"], batch["completion_mask"], strict=False)]  # fmt: skip
    rows = [next(row for row in TRIPLETS if row["anchor"] == prompt) for prompt in prompts]
    queries = inner.encode([row["anchor"] for row in rows])
    right, wrong = (inner.encode([row[name] for row in rows]) for name in ("positive", "negative"))
    contrastive = divergence = 0.0
    for i, (query, row) in enumerate(zip(queries, rows, strict=True)):
        found = [cosine(query, passage) / TEMPERATURE for passage in (*right, *wrong)]
        contrastive -= (found[i] - math.log(sum(map(math.exp, found)))) / 3
        said = torch.tensor([found[i], found[i + 3]], dtype=torch.float64).softmax(0)
        end = inner.tokenizer.eos_token
        scores = [
            log_probability(inner, row["anchor"], f" {row[name]}{end}")
            for name in ("positive", "negative")
        ]
        written = torch.tensor(scores, dtype=torch.float64).softmax(0)
        divergence += float((written * (written / said).log()).sum()) / 3
    assert preference > 0 and contrastive > 0.1 and divergence > 1e-4
    expected = float(preference) + 2 * contrastive + 3 * divergence
    assert float(whole) == pytest.approx(expected, abs=1e-4)

    whole = trainer.compute_loss(trainer.model.train(), batch)
    whole.backward()
    assert all(
        w.grad is not None
        for n, w in trainer.model.named_parameters()
        if "lora_" in n and "default" in n
    )


def test_grl(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        grl,
        "measure",
        lambda model, count: Measured(
            {"layers": Figure.of_ratio([model.config.num_hidden_layers])}, np.zeros(2)
        ),
    )
    make_model(max_position_embeddings=2048).save_pretrained(tmp_path / "tiny")
    path = tmp_path / "triplets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TRIPLETS))
    grl.main([
        "--model", str(tmp_path / "tiny"), "--triplets", str(path), "--steps", "2", "--batch-size", "3",
        "--learning-rate", "1e-2", "--count", "2", "--output", str(tmp_path / "out"),
    ])  # fmt: skip
    assert "layers" in printed_table(capsys.readouterr().out)
    tuned, base = (load_magnet(tmp_path / name).eval() for name in ("out/model", "tiny"))
    assert abs(tuned.encode(SENTENCES) - base.encode(SENTENCES)).max() > 0.01
    assert isinstance(tuned.infill("The old", " was quiet.", span_length=3), str)
