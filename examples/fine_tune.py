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

from datasets import Dataset

from evaluation.common.figures import table
from modeling_magnet import load_magnet
from modeling_magnet.training import MagnetConfig, MagnetTrainer

from .measuring import DATA, measure, read, sentences_of_paragraphs

ROOT = Path(__file__).parents[1]


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnet-smollm2-135m"))
    parser.add_argument("--triplets", type=Path, help=".jsonl: anchor, positive, negative")
    parser.add_argument("--labels-only", action="store_true", help="without the text objectives")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="blocks, with 4 triplets each")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--count", type=int, default=20, help="held-out paragraphs to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/fine-tuned"))
    options = parser.parse_args(command_line)

    model = load_magnet(options.model).eval()
    if options.triplets:
        triplets = read(options.triplets)
    else:
        triplets = sentences_of_paragraphs(read(DATA / "wiki-train.jsonl"), per_paragraph=2)
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
            pair_length=96,
            pairs_per_block=4,
            pair_chunk=16,
            per_device_train_batch_size=options.batch_size * (4 if options.labels_only else 1),
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
    after = measure(load_magnet(options.output / "model").eval(), options.count)
    print("\n" + table({"before": before, "after": after}))
    print(f"\nThe fine-tuned model: {options.output / 'model'}")


if __name__ == "__main__":
    main()
