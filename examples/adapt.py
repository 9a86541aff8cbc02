"""Adapt a model on a text file, in code: what training writes, and what it brought.

    python -m examples.adapt
    python -m examples.adapt --text my.txt --model HuggingFaceTB/SmolLM2-360M --steps 200 --output outputs/mine

Holds out every tenth paragraph, adapts on the others by masked next-token prediction and missing-span
generation, and prints the perplexity of missing spans in the held-out text, before and after.
"""

import argparse
from collections import Counter
from pathlib import Path

from evaluation.common.figures import table
from evaluation.common.spans import tokenize_rows
from modeling_magnet import load_magnet
from modeling_magnet.training.arguments import (
    DataArguments,
    MagnetTrainingArguments,
    ModelArguments,
)
from modeling_magnet.training.sources import read_rows
from modeling_magnet.training.train import train

from .measuring import VIEWS, infilling


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--text", default="examples/data/wiki-train.jsonl", help=".txt, .jsonl, ..."
    )
    parser.add_argument("--model", default="smollm2", help="Hub id or folder of a base model")
    parser.add_argument("--steps", type=int, default=10, help="training steps")
    parser.add_argument("--count", type=int, default=20, help="held-out paragraphs to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/adapt"), help="where it goes")
    options = parser.parse_args(command_line)

    texts = [row["text"] for row in read_rows([options.text], ("text",), counts=Counter())]
    held_out = texts[::10]
    options.output.mkdir(parents=True, exist_ok=True)
    corpus = options.output / "train.txt"
    if not corpus.exists():  # a run that goes on has its text
        kept = [" ".join(text.split()) for i, text in enumerate(texts) if i % 10]
        corpus.write_text("\n".join(kept) + "\n", encoding="utf-8")

    adapted = train(
        (
            ModelArguments(model=options.model),
            DataArguments(text=[str(corpus)], pairs=[], block_length=256, max_span_length=48),
            MagnetTrainingArguments(
                output_dir=str(options.output),
                objective_schedule=[{"steps": options.steps, "mntp": 1, "msg": 1}],
                per_device_train_batch_size=2,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                logging_steps=5,
                save_strategy="no",
                report_to="none",
            ),
        )
    )
    columns = {}
    base = load_magnet(options.output / "base").eval()
    for name, model in (("before", base), ("after", adapted)):
        found = infilling(model, tokenize_rows(held_out, model, count=options.count))
        columns[name] = {f"infilling perplexity, {VIEWS[view]}": found[view] for view in VIEWS}
    print("\n" + table(columns))
    print(f"\nThe adapted model: {options.output / 'model'}")


if __name__ == "__main__":
    main()
