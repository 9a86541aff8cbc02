"""Fine-tune a model on triplets, in code, and see what it does to all three jobs.

    python -m examples.fine_tune
    python -m examples.fine_tune --triplets mine.jsonl --steps 300 --output outputs/fine-tuned

A line of a file of triplets is {"anchor": ..., "positive": ..., "negative": ...}. Without a file the task is
to find the paragraph of Wikipedia that a sentence was taken out of: the hard negative is another paragraph
of the same article. The checkpoint's adapter is trained on, together with the text objectives;
`--labels-only` leaves these out.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from modeling_magnet import load_magnet
from modeling_magnet.training import MagnetConfig, MagnetTrainer

from .measuring import DATA, compare, measure, read, sentences_of_paragraphs

ROOT = Path(__file__).parents[1]


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnet-smollm2-135m"))
    parser.add_argument("--triplets", type=Path, help=".jsonl: anchor, positive, negative")
    parser.add_argument("--labels-only", action="store_true", help="without the text objectives")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1, help="blocks, with 16 triplets each")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--bf16", action="store_true", help="faster on a GPU or a CPU with AMX")
    parser.add_argument("--count", type=int, default=20, help="held-out paragraphs to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/fine-tuned"))
    options = parser.parse_args(command_line)

    model = load_magnet(options.model)
    if options.triplets:
        triplets = read(options.triplets)
    else:
        triplets = sentences_of_paragraphs(read(DATA / "wiki-train.jsonl"), per_paragraph=2)
    labels = Dataset.from_list(triplets)
    shape = {"pair_length": 96, "pairs_per_block": 16, "pair_chunk": 16}
    tune(model, labels, {"sscl": 9.0}, options, text=not options.labels_only, **shape)


def tune(
    model: Any,
    labels: Dataset,
    weights: dict[str, float],
    options: argparse.Namespace,
    *,
    text: bool,
    pairs_per_block: int,
    **settings: Any,
) -> None:
    """Train a model's adapter on, print what it does before and after, and save it.

    Args:
        model: of `load_magnet`.
        labels: what the sentence vectors are trained on.
        weights: of the objectives on these, beside 1 for those on text; without text they are 1 too.
        options: `steps`, `batch_size`, `learning_rate`, `bf16`, `count` and `output`.
        text: whether the text objectives are trained in the same steps.
        pairs_per_block: rows of `labels` for each block of text.
        settings: further ones of `MagnetConfig`.
    """
    data, rows = {"labels": labels}, pairs_per_block
    if not text:
        weights = dict.fromkeys(weights, 1.0)
    else:
        data["text"], rows = Dataset.from_list(read(DATA / "wiki-train.jsonl")), 1
        weights = {"mntp": 1.0, "msg": 1.0} | weights
    before = measure(model.eval(), options.count)
    trainer = MagnetTrainer(
        model=model,
        args=MagnetConfig(
            output_dir=str(options.output / "run"),
            objective_schedule=[{"steps": options.steps} | weights],
            block_length=model.magnet_settings.trained_length or 128,  # what it can, it keeps
            max_span_length=32,
            pairs_per_block=pairs_per_block,
            per_device_train_batch_size=options.batch_size * rows,
            learning_rate=options.learning_rate,
            bf16=options.bf16,
            use_cpu=not torch.accelerator.is_available(),
            temperature=0.05,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            **settings,
        ),
        train_dataset=data,
    )
    trainer.train()
    trainer.save_model(str(options.output / "model"))
    after = measure(load_magnet(options.output / "model").eval(), options.count)
    print(compare(before, after))
    print(f"\nThe model: {options.output / 'model'}")


if __name__ == "__main__":
    main()
