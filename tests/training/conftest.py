"""A tiny corpus in files, and arguments of a tiny run on it."""

import json

import pytest
import yaml
from tiny import SENTENCES, make_model

from modeling_magnet.training.train import parse


@pytest.fixture
def corpus(tmp_path):
    """Two files: 60 paragraphs, and 12 pairs."""
    texts = [" ".join(SENTENCES[i % 5 :] + SENTENCES[: i % 5]) for i in range(60)]
    pairs = [(f"{i} {a}", f"{i}, {a.lower()}") for i, a in enumerate(SENTENCES * 3)][:12]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rows = [
        {"sentence": a, "paraphrase": b, "negative": a[::-1], "other": b.upper(), "score": i / 11}
        | {
            "sentence_vector": [float(i % 3), 1.0, i / 5],
            "paraphrase_vector": [1.0, float(i % 4), i / 7],
            "label": "abc"[i % 3],
        }
        for i, (a, b) in enumerate(pairs)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def run(corpus):
    """Arguments of a run on a saved tiny model; keywords go on top."""

    def arguments(**changes):
        base = corpus / "tiny"
        if not base.exists():
            make_model().save_pretrained(base)
        config = {
            "model": str(base),
            "start_token": "<s>",
            "mask_token": "_",
            "lora_r": 4,
            "text": [str(corpus / "text.jsonl")],
            "pairs": [str(corpus / "pairs.jsonl")],
            "validation_text": [str(corpus / "text.jsonl")],
            "validation_pairs": [str(corpus / "pairs.jsonl")],
            "validation_blocks": 6,
            "validation_pair_count": 12,
            "token_cache": str(corpus / "tokens"),
            "output_dir": str(corpus / "out"),
            "block_length": 40,
            "max_span_length": 8,
            "pair_length": 48,
            "pairs_per_block": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "lr_scheduler_type": "constant",
            "objective_schedule": [{"steps": 6, "mntp": 1, "sscl": 1, "msg": 1}],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "report_to": "none",
        }
        (corpus / "config.yaml").write_text(yaml.safe_dump(config | changes))
        return parse([str(corpus / "config.yaml")])

    return arguments
