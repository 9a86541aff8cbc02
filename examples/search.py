"""Semantic search with FAISS: the passages that say what is asked, in whatever words.

    pip install -e ".[examples]"
    python -m examples.search "How is a frequency measured?" "A town by a river"
    python -m examples.search --text notes.txt --limit 0 --index outputs/notes "What did we decide?"

Passages are the lines of a .txt file, or a column of a .jsonl or .parquet file. `--index` keeps vectors
and passages in a folder: the same command with other questions then answers at once.
"""

import argparse
import json
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from modeling_magnet import load_magnet
from modeling_magnet.training.sources import read_rows

try:
    import faiss
except ModuleNotFoundError as error:
    raise SystemExit('faiss is not installed: pip install -e ".[examples]"') from error

QUESTIONS = [
    "How do animals find their way?",
    "a book that made its author rich",
    "The two armies made peace.",
]


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="what to look for")
    parser.add_argument(
        "--model", default="checkpoints/magnet-smollm2-135m", help="folder or Hub id"
    )
    parser.add_argument("--text", default="examples/data/pairs-train.jsonl", help="the passages")
    parser.add_argument("--column", help="of --text (default: text, in the shipped file sentence)")
    parser.add_argument("--limit", type=int, default=400, help="passages to read; 0: all")
    parser.add_argument("--index", type=Path, help="folder to keep the vectors in, or to read")
    parser.add_argument("--top", type=int, default=3, help="answers to a question")
    options = parser.parse_args(command_line)

    model = load_magnet(options.model).eval()
    began = time.perf_counter()
    if options.index and (options.index / "index.faiss").exists():
        index, passages = read_index(options.index, options.model)
        print(f"{index.ntotal} passages read from {options.index}\n")
    else:
        column = options.column or (
            "sentence" if options.text.endswith("pairs-train.jsonl") else "text"
        )
        rows = read_rows([options.text], (column,), counts=Counter())
        passages = [row[column] for row in islice(rows, options.limit or None)]
        vectors = model.encode(passages, normalize_embeddings=True, show_progress_bar=True)
        index = faiss.IndexFlatIP(vectors.shape[1])  # the inner product of unit vectors: the cosine
        index.add(vectors)
        print(f"{index.ntotal} passages encoded in {time.perf_counter() - began:.0f} s\n")
        if options.index:
            write_index(options.index, index, {"model": options.model, "passages": passages})

    queries = model.encode(options.questions, normalize_embeddings=True)  # (questions, hidden)
    cosines, found = index.search(queries, min(options.top, len(passages)))  # (questions, top)
    for question, scores, numbers in zip(options.questions, cosines, found, strict=True):
        print(question)
        for score, number in zip(scores, numbers, strict=True):
            print(f"  {score:.3f}  {passages[number]}")


def write_index(folder: Path, index: Any, content: dict) -> None:
    """Keep an index and what it is of; the index comes last, and with it the folder counts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "passages.json").write_text(json.dumps(content), encoding="utf-8")
    faiss.write_index(index, str(folder / "index.faiss"))


def read_index(folder: Path, model: str) -> tuple[Any, list[str]]:
    """What `write_index` kept, if it was of this model."""
    content = json.loads((folder / "passages.json").read_text(encoding="utf-8"))
    if content["model"] != model:
        raise SystemExit(
            f"{folder} holds vectors of {content['model']}, --model is {model}: give another --index"
        )
    return faiss.read_index(str(folder / "index.faiss")), content["passages"]


if __name__ == "__main__":
    main()
