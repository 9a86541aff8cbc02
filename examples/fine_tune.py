"""Fine-tune a model on triplets, in code, and see what it does to sentences and to infilling.

    python -m examples.fine_tune
    python -m examples.fine_tune --triplets mine.jsonl --steps 300 --output outputs/fine-tuned

A line of a file of triplets is {"anchor": ..., "positive": ..., "negative": ...}. Without a file: sentences
of Wikipedia, their paraphrases, and for a hard negative what the model finds nearest of the others.
The adapter of the checkpoint is trained on, beside the text objectives; `--labels-only` leaves these out.
"""

import argparse
import csv
import json
from pathlib import Path

from datasets import Dataset

from modeling_magnet import load_magnet
from modeling_magnet.training import MagnetConfig, MagnetTrainer
from modeling_magnet.training.metrics import spearman

from .adapt import ROWS, perplexities

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data"


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnet-smollm2-135m"))
    parser.add_argument("--triplets", type=Path, help=".jsonl: anchor, positive, negative")
    parser.add_argument("--labels-only", action="store_true", help="without the text objectives")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="blocks, with 8 triplets each")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--count", type=int, default=20, help="held-out paragraphs to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/fine-tuned"))
    options = parser.parse_args(command_line)

    model = load_magnet(options.model).eval()
    triplets = read(options.triplets) if options.triplets else sample(model)
    data = {"labels": Dataset.from_list(triplets)}
    weights = {"sscl": 1}
    if not options.labels_only:
        data["text"] = Dataset.from_list(read(DATA / "wiki-train.jsonl"))
        weights = {"mntp": 1, "msg": 1, "sscl": 9}
    before = measure(model, options.count)
    trainer = MagnetTrainer(
        model=model,
        args=MagnetConfig(
            output_dir=str(options.output / "run"),
            objective_schedule=[{"steps": options.steps} | weights],
            block_length=128,
            max_span_length=32,
            pair_length=64,
            pairs_per_block=8,
            per_device_train_batch_size=options.batch_size * (8 if options.labels_only else 1),
            learning_rate=options.learning_rate,
            temperature=0.05,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=data,
    )
    trainer.train()
    trainer.save_model(str(options.output / "model"))
    print_both(before, measure(load_magnet(options.output / "model").eval(), options.count))
    print(f"\nThe fine-tuned model: {options.output / 'model'}")


def sample(model) -> list[dict[str, str]]:
    """Triplets of the repository's pairs: the negative is what the model finds nearest of all others."""
    rows = read(DATA / "pairs-train.jsonl")
    anchors, positives = ([row[name] for row in rows] for name in ("sentence", "paraphrase"))
    near = model.similarity(model.encode(anchors), model.encode(positives))  # (pairs, pairs)
    nearest = near.fill_diagonal_(-1).argmax(dim=1).tolist()
    columns = zip(anchors, positives, (positives[i] for i in nearest), strict=True)
    return [dict(zip(("anchor", "positive", "negative"), texts, strict=True)) for texts in columns]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def print_both(before: dict[str, float], after: dict[str, float]) -> None:
    """A line per figure, before and after."""
    print(f"\n{'':40}{'before':>10}{'after':>10}")
    for name, value in before.items():
        print(f"{name:40}{value:10.2f}{after[name]:10.2f}")


def measure(model, count: int) -> dict[str, float]:
    """Sentence similarity, and the perplexity of missing spans of held-out text."""
    with (DATA / "sts-answers-forums.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    one, two = (
        model.encode([row[name] for row in rows], normalize_embeddings=True)
        for name in ("sentence1", "sentence2")
    )
    scores = [float(row["score"]) for row in rows]
    texts = [row["text"] for row in read(DATA / "wiki-validation.jsonl")]
    found = perplexities(model, texts, count)
    return {"sentence similarity, Spearman x 100": 100 * spearman((one * two).sum(1), scores)} | {
        f"infilling perplexity, {label}": found[view] for view, label in ROWS.items()
    }


if __name__ == "__main__":
    main()
