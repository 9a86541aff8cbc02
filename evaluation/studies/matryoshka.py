"""Similarity and speed against layers and widths, of one or more models, such as before and after training.

    python -m evaluation.studies.matryoshka --models before=outputs/released-all/adapter after=outputs/matryoshka/adapter \\
        --sts STSB-dev.tsv --layers 6 10 14 18 22 26 30 --dims 32 64 128 256 576 --output outputs/matryoshka-sts

The file has the columns `sentence1`, `sentence2` and `score`. Vectors are those of
`encode(num_layers=, truncate_dim=)` with the prompt `STS` where a checkpoint has it, and are compared by
cosine. Sentences per second are those of all the file's sentences in one call; a width costs no time, so
they are told by layers alone. Writes `matryoshka.json`, `matryoshka.md`, `layers.png` and `widths.png`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.common.figures import Figure, table
from evaluation.common.texts import read_columns
from evaluation.common.writing import markdown, write_json, write_text
from evaluation.models import load_language_model
from evaluation.report import draw_lines

COLUMNS = ("sentence1", "sentence2", "score")
PROMPT = "STS"

Grid = dict[int, dict[int, Figure]]
"""Spearman's correlation in percent by layers, then by dimensions."""


def measure(
    model: Any,
    pairs: dict[str, Sequence],
    layers: Sequence[int],
    dims: Sequence[int],
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[Grid, dict[int, float]]:
    """Correlations by numbers of layers and widths, and sentences per second by numbers of layers.

    Raises:
        ValueError: the model has not so many layers or dimensions.
    """
    texts = [*pairs["sentence1"], *pairs["sentence2"]]
    prompt_name = PROMPT if PROMPT in model.magnet_settings.prompts else None
    arguments = {"prompt_name": prompt_name, "batch_size": batch_size, "truncation": True}
    model.encode(texts[:batch_size], truncate_dim=max(dims), **arguments)  # warm, and checked
    grid: Grid = {}
    speeds: dict[int, float] = {}
    for num_layers in layers:
        began = time.perf_counter()
        vectors = model.encode(texts, num_layers=num_layers, **arguments)  # (2 x pairs, hidden)
        speeds[num_layers] = len(texts) / (time.perf_counter() - began)
        grid[num_layers] = {dim: _spearman(vectors[:, :dim], pairs["score"], seed) for dim in dims}
    return grid, speeds


def _spearman(vectors: np.ndarray, scores: Sequence[float], seed: int) -> Figure:
    one, two = np.split(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 2)
    cosines = (one * two).sum(axis=1)
    return Figure.of_correlation(cosines, scores, seed).scaled(100)


def write(
    output: Path, grids: dict[str, Grid], speeds: dict[str, dict[int, float]], about: dict[str, Any]
) -> str:
    """Write the figures of each model by name, the table and the two pictures, and return the table."""
    columns = {
        name: {
            f"{layers} layers, {dim} dimensions": figure
            for layers, row in grid.items()
            for dim, figure in row.items()
        }
        for name, grid in grids.items()
    }
    first = next(iter(grids.values()))
    layers, dims = sorted(first), sorted(next(iter(first.values())))
    rates = [[n, *(f"{speed[n]:.1f}" for speed in speeds.values())] for n in first]
    text = "\n\n".join(
        [
            "Spearman's correlation, in percent:",
            table(columns),
            "Sentences per second:",
            markdown(["layers", *speeds], rates),
            *(f"- {name}: {value}" for name, value in about.items()),
        ]
    )
    write_json(output / "matryoshka.json", {"about": about, "spearman": grids, "speed": speeds})
    write_text(output / "matryoshka.md", f"{text}\n")
    by_layers: dict[str, Any] = {
        f"Spearman, {dim} dimensions": {
            name: [(n, row[dim]) for n, row in grid.items()] for name, grid in grids.items()
        }
        for dim in (dims[-1], dims[(len(dims) - 1) // 2])
    }
    by_layers["sentences per second"] = {
        name: [(n, Figure(rate, rate, rate, 1)) for n, rate in speed.items()]
        for name, speed in speeds.items()
    }
    by_width: dict[str, Any] = {
        f"Spearman, {n} layers": {name: list(grid[n].items()) for name, grid in grids.items()}
        for n in (layers[-1], layers[(len(layers) - 1) // 2])
    }
    draw_lines(output / "layers.png", by_layers, ("layers", ""))
    draw_lines(output / "widths.png", by_width, ("dimensions", ""))
    return text


def _named(pair: str) -> tuple[str, str]:
    name, equals, place = pair.partition("=")
    if not (name and equals and place):
        raise argparse.ArgumentTypeError(f"{pair!r}: give NAME=FOLDER")
    return name, place


def main(command_line: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--models", nargs="+", type=_named, required=True, help="NAME=FOLDER or NAME=HUB-ID")
    add("--sts", type=Path, required=True, help=f".tsv with {', '.join(COLUMNS)}")
    add("--layers", nargs="+", type=int, required=True)
    add("--dims", nargs="+", type=int, required=True)
    add("--limit", type=int, help="pairs, drawn by the seed (default: all)")
    add("--batch-size", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--output", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(command_line)
    sizes = options.layers, options.dims, options.batch_size, options.seed
    try:
        pairs: dict[str, Any] = read_columns(options.sts, COLUMNS)
        order = np.random.default_rng(options.seed).permutation(len(pairs["score"]))
        pairs = {name: [pairs[name][i] for i in order[: options.limit]] for name in COLUMNS}
        pairs["score"] = [float(score) for score in pairs["score"]]
        grids, speeds = {}, {}
        for name, place in options.models:
            grids[name], speeds[name] = measure(load_language_model(place), pairs, *sizes)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = len(pairs["score"])
    about = {"file": options.sts.name, "pairs": count, "batch size": options.batch_size}
    options.output.mkdir(parents=True, exist_ok=True)
    print(write(options.output, grids, speeds, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
