"""Mines hard negatives for pairs: texts that a model finds similar to a query and that are not its answer.

    python -m modeling_magnet.training.mine_negatives --model outputs/magnet/model --input pairs.jsonl \\
        --columns question answer --num_negatives 3 --relative_margin 0.05 --output mined.jsonl

The model is a Magnet model or one of sentence-transformers, whose `mine_hard_negatives` does the mining with
FAISS. Run the command again after a kill: it resumes after the last finished shard, and writes the same file.
"""

import random
import shutil
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from tqdm import tqdm

from modeling_magnet.atomic import atomic_write
from modeling_magnet.locking import folder_lock

from .teacher_vectors import MADE_OF, add_options, claim, write_vectors

OF_VECTORS = (
    "model", "input", "input_config", "input_split", "columns", "limit", "prompt", "batch_size",
    "shard_size", "trust_remote_code",
)  # fmt: skip
"""The options on which the vectors depend."""

THRESHOLDS = ("max_score", "min_score", "absolute_margin", "relative_margin")
WRITERS = {
    ".jsonl": lambda table, path: datasets.Dataset(table).to_json(path, force_ascii=False),
    ".parquet": pyarrow.parquet.write_table,
}


def parse(command_line: list[str]) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--columns", nargs=2, default=["anchor", "positive"], help="a query and its answer")
    add("--output", required=True, help=".jsonl or .parquet: anchor, positive, negative_1, ...")
    add("--num_negatives", type=int, default=1, help="for each pair; pairs with fewer are left out")
    add("--range_min", type=int, default=0, help="how many of the nearest texts to skip")
    add("--range_max", type=int, help="how many of the nearest texts to consider; default: enough")
    add(
        "--sampling",
        choices=("top", "random"),
        default="top",
        help="take the nearest of these, or any",
    )
    add("--max_score", type=float, help="highest cosine of a negative")
    add("--min_score", type=float, help="lowest cosine of a negative")
    add("--absolute_margin", type=float, help="how far a negative's cosine is below the positive's")
    add("--relative_margin", type=float, help="that distance, as a share of the positive's cosine")
    add("--cross_encoder", help="folder or Hub id; its scores count for the margins and limits")
    add("--seed", type=int, default=42, help="of the sampling")
    add_options(parser)
    arguments = parser.parse_args(command_line)
    if Path(arguments.output).suffix not in WRITERS:
        parser.error(f"output is {arguments.output}: give a name that ends in .jsonl or .parquet")
    if min(arguments.shard_size, arguments.num_negatives, arguments.limit or 1) < 1:
        parser.error("shard_size, num_negatives and limit must be 1 or more")
    if len(set(arguments.columns)) < 2:
        parser.error(
            f"columns are {' '.join(arguments.columns)}: give two different columns, a query and its answer"
        )
    last = arguments.range_max
    if arguments.range_min < 0 or (
        last is not None and last - arguments.range_min < arguments.num_negatives
    ):
        parser.error(
            f"range_min is {arguments.range_min}, range_max {last}: give a range from 0 on that holds "
            f"num_negatives ({arguments.num_negatives})"
        )
    if arguments.cross_encoder and all(getattr(arguments, name) is None for name in THRESHOLDS):
        parser.error(f"cross_encoder needs a threshold: give one of {', '.join(THRESHOLDS)}")
    return arguments


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    arguments = parse(sys.argv[1:] if command_line is None else command_line)
    pairs, mined = mine(arguments)
    print(f"wrote {arguments.output}: {mined:,} of {pairs:,} pairs have their negatives")


def mine(arguments: Namespace) -> tuple[int, int]:
    """Write the file, resuming where an earlier run was stopped.

    First all vectors are computed, in shards. Then negatives of the queries are searched, shard by shard, among
    all positives. The shards are in a folder next to the output until the output is written.

    Args:
        arguments: of `parse`.

    Returns:
        How many pairs there were, and how many rows the file has.

    Raises:
        FileExistsError: the output exists.
        ImportError: faiss or sentence-transformers is not installed.
        ValueError: no pair has enough negatives, or the shards were started with other settings.
        BlockingIOError: another process writes to this output.
        FileNotFoundError, OSError: as in `write_vectors`.
    """
    output = Path(arguments.output)
    folder = output.with_name(output.name + ".shards")
    if output.exists() and not folder.exists():
        raise FileExistsError(f"{output} exists: delete it, or give another output")
    encoder = _cross_encoder(
        arguments
    )  # raises if something is not installed, before hours of vectors
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        free = ("input", "output", "batch_size")
        if not any(folder.glob("*.parquet")):  # nothing is mined yet, so settings may change
            (folder / MADE_OF).unlink(missing_ok=True)
        claim(folder, {name: value for name, value in vars(arguments).items() if name not in free})
        own = {name: value for name, value in vars(arguments).items() if name in OF_VECTORS}
        files = write_vectors(Namespace(**own, output=str(folder / "vectors"), keep=[]))
        known = _StoredVectors(files, arguments.columns)
        shards = list(_shards(known.pairs, arguments.shard_size))
        paths = [folder / f"{number:05d}.parquet" for number in range(len(shards))]
        for number, (pairs, path) in enumerate(zip(tqdm(shards, "Mining"), paths, strict=True)):
            if not path.exists():
                random.seed(arguments.seed * 1_000_003 + number)
                table = _mine_shard(pairs, known, encoder, arguments)
                with atomic_write(path) as temporary:
                    pyarrow.parquet.write_table(table, temporary)
        found = pa.concat_tables([pyarrow.parquet.read_table(path) for path in paths])
        if not len(found):
            for path in paths:  # the vectors stay, for the next try
                path.unlink()
            raise ValueError(
                f"not one of {len(known.pairs)} pairs has {arguments.num_negatives} negatives: lower "
                "num_negatives or the margins, or raise range_max"
            )
        with atomic_write(output) as temporary:
            WRITERS[output.suffix](found, temporary)
    shutil.rmtree(folder)
    return len(known.pairs), len(found)


class _StoredVectors:
    """Replaces a SentenceTransformer by vectors that are read from files."""

    device = torch.device("cpu")

    def __init__(self, files: list[Path], columns: list[str]):
        table = pa.concat_tables([pyarrow.parquet.read_table(path) for path in files])
        anchors, positives = (table[name].to_pylist() for name in columns)
        self.pairs = list(zip(anchors, positives, strict=True))
        self.corpus = list(dict.fromkeys(positives))
        both = [table[f"{name}_vector"].combine_chunks() for name in columns]
        size = both[0].type.list_size
        self.vectors = np.concatenate([v.flatten().to_numpy().reshape(-1, size) for v in both])
        self.rows = {text: row for row, text in enumerate((*anchors, *positives))}

    def encode_document(self, texts: list[str], **_) -> np.ndarray:
        return self.vectors[[self.rows[text] for text in texts]]  # (texts, size)

    encode_query = encode_document

    def get_embedding_dimension(self) -> int:
        return self.vectors.shape[1]

    def similarity_pairwise(self, one: np.ndarray, two: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((one * two).sum(axis=1))


def _mine_shard(pairs: list[tuple[str, str]], known: Any, encoder: Any, arguments: Namespace):
    """A table of anchor, positive and negatives, for the pairs that have enough of them."""
    from sentence_transformers.util import mine_hard_negatives

    mined = mine_hard_negatives(
        datasets.Dataset.from_list([{"anchor": a, "positive": p} for a, p in pairs]),
        known,
        corpus=known.corpus,
        cross_encoder=encoder,
        range_min=arguments.range_min,
        range_max=arguments.range_max,
        num_negatives=arguments.num_negatives,
        sampling_strategy=arguments.sampling,
        output_format="n-tuple",
        batch_size=arguments.batch_size,
        use_faiss=True,
        verbose=False,
        **{name: getattr(arguments, name) for name in THRESHOLDS},
    )
    names = ["anchor", "positive", *(f"negative_{n + 1}" for n in range(arguments.num_negatives))]
    rows = zip(*(mined[name] for name in names), strict=True)
    kept = [row for row in rows if row[0] not in row[2:]]  # a query that is another's answer too
    columns = zip(names, zip(*kept, strict=True), strict=True) if kept else ((n, ()) for n in names)
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns})


def _shards(pairs: list[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    """Split pairs into shards of `size` queries. A query's pairs stay together: none of its answers is a negative."""
    of: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        of.setdefault(pair[0], []).append(pair)
    queries = iter(of.values())
    while shard := [*islice(queries, size)]:
        yield [pair for pairs_of_one in shard for pair in pairs_of_one]


def _cross_encoder(arguments: Namespace) -> Any:
    try:
        import faiss  # noqa: F401
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise ImportError(
            f"mining needs {error.name}: pip install 'modeling-magnet[mine]'"
        ) from error
    if arguments.cross_encoder is None:
        return None
    return CrossEncoder(arguments.cross_encoder, trust_remote_code=arguments.trust_remote_code)


if __name__ == "__main__":
    main()
