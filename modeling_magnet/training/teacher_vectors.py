"""Computes the vectors of a table's texts once, with any encoder: a teacher for `distil`, or a guide.

    python -m modeling_magnet.training.teacher_vectors --model sentence-transformers/all-MiniLM-L6-v2 \\
        --input pairs.parquet --columns sentence paraphrase --output outputs/taught

Writes a folder of Parquet files with the input's rows and, for each column of texts, a column of their vectors,
such as `sentence_vector`. Run the command again after a kill: it resumes after the last finished file.
"""

import itertools
import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm
from transformers import PreTrainedConfig

from modeling_magnet import load_magnet
from modeling_magnet.atomic import atomic_write
from modeling_magnet.checkpoint import PYPI
from modeling_magnet.locking import folder_lock

from .resume import record_settings
from .sources import Row, identify, read_rows

MADE_OF = "made-of.json"

Encode = Callable[[list[str]], np.ndarray]
"""Turns texts into vectors of length 1, (texts, size) in float32."""


def parse(command_line: list[str]) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--columns", nargs="+", default=["text"], help="columns of text")
    add("--keep", nargs="*", default=[], help="further columns to copy, such as a score or a title")
    add("--output", required=True, help="folder")
    add_options(parser)
    arguments = parser.parse_args(command_line)
    if arguments.shard_size < 1 or (arguments.limit is not None and arguments.limit < 1):
        parser.error("shard_size and limit must be 1 or more")
    if len(set(arguments.columns)) < len(arguments.columns):
        parser.error(f"columns are {' '.join(arguments.columns)}: give each once")
    return arguments


def add_options(parser: ArgumentParser) -> None:
    """Add the options on which vectors depend, except the columns."""
    add = parser.add_argument
    add("--model", required=True, help="Magnet or sentence-transformers: folder or Hub id")
    add("--input", nargs="+", required=True, help=".txt, .jsonl, .parquet, or an id of `datasets`")
    add("--input_config", help="configuration of a `datasets` id")
    add("--input_split", default="train", help="split of a `datasets` id")
    add("--limit", type=int, help="read only the first LIMIT rows")
    add("--prompt", help="text to put before each text; default: the model's own prompt")
    add("--batch_size", type=int, default=32, help="texts that the model reads at once")
    add("--shard_size", type=int, default=4096, help="rows of a shard: what a kill can lose")
    add("--trust_remote_code", action="store_true", help="run code that the model brings")


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    files = write_vectors(parse(sys.argv[1:] if command_line is None else command_line))
    print(f"wrote {files[0].parent}: {len(files)} files")


def write_vectors(arguments: Namespace) -> list[Path]:
    """Write the folder, resuming where an earlier run was stopped.

    Args:
        arguments: of `parse`.

    Returns:
        Its files, in the order of the rows.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the folder was started with other settings, another input or another model, a source
            cannot be read, or no row has all texts.
        BlockingIOError: another process writes to the folder.
        OSError: the model does not exist, or the disk is full.
    """
    folder = Path(arguments.output)
    free = ("input", "output", "batch_size")
    made_of = {name: value for name, value in vars(arguments).items() if name not in free}
    made_of["input"] = identify(arguments.input, arguments.input_config, arguments.input_split)
    made_of["weights"] = _weights(arguments.model)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        claim(folder, made_of)
        encode: Encode | None = None
        files = []
        bar = tqdm(desc="Encoding", unit=" rows", total=arguments.limit)
        for number, rows in enumerate(_shards(arguments)):
            files.append(folder / f"part-{number:05d}.parquet")
            if not files[-1].exists():
                encode = encode or load_encoder(
                    arguments.model, arguments.prompt, arguments.batch_size,
                    arguments.trust_remote_code,
                )  # fmt: skip
                _write(files[-1], _table(rows, arguments, encode))
            bar.update(len(rows))
        bar.close()
    if not files:
        raise ValueError(
            f"no row of {arguments.input} has a text in {', '.join(arguments.columns)}"
        )
    return files


def load_encoder(
    model: str, prompt: str | None = None, batch_size: int = 32, trust_remote_code: bool = False
) -> Encode:
    """A function that encodes texts with a Magnet model or one of sentence-transformers.

    Args:
        model: a folder or a Hub id.
        prompt: before each text; None: the model's own default.
        batch_size: texts that the model reads at once.
        trust_remote_code: run the code that a model of sentence-transformers may bring.

    Raises:
        OSError: the model does not exist.
        ImportError: sentence-transformers is not installed.
    """
    options: dict[str, Any] = {"prompt": prompt, "batch_size": batch_size}
    options |= {"normalize_embeddings": True, "show_progress_bar": False}
    if is_magnet(model):
        magnet = load_magnet(model).eval()
        return lambda texts: magnet.encode(texts, truncation=True, **options)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(f"{model} needs: pip install sentence-transformers") from error
    encoder = SentenceTransformer(model, trust_remote_code=trust_remote_code)
    return lambda texts: encoder.encode(texts, **options)


def is_magnet(model: str) -> bool:
    """Whether a folder or id is a Magnet model or an adapter of one, by its config."""
    if model.startswith(PYPI) or (Path(model) / "adapter_config.json").is_file():
        return True
    return "magnet" in PreTrainedConfig.get_config_dict(model)[0]


def _weights(model: str) -> list:
    """A value that changes when the model in a folder is trained again; empty for an id."""
    files = sorted(Path(model).glob("*.safetensors"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def claim(folder: Path, made_of: dict[str, Any]) -> None:
    """Record what the folder is made of, or raise if it was started with something else."""
    changed = record_settings(folder / MADE_OF, json.loads(json.dumps(made_of)), "output")
    if changed:
        raise ValueError(
            f"{folder} was started with other settings ({'; '.join(changed)}): give the same settings, or a new folder"
        )


def _shards(arguments: Namespace) -> Iterator[list[Row]]:
    rows = read_rows(
        arguments.input,
        tuple(arguments.columns),
        arguments.input_config,
        arguments.input_split,
        keys=tuple(arguments.keep),
        counts=Counter(),
    )
    rows = itertools.islice(rows, arguments.limit)
    while shard := [*itertools.islice(rows, arguments.shard_size)]:
        yield shard


def _table(rows: list[Row], arguments: Namespace, encode: Encode) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in arguments.columns:
        texts = [row[name] for row in rows]
        vectors = np.ascontiguousarray(encode(texts), dtype=np.float32)  # (rows, size)
        columns[name] = pa.array(texts, pa.string())
        flat = pa.array(vectors.ravel())
        columns[f"{name}_vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table(columns | {name: [row.get(name) for row in rows] for name in arguments.keep})


def _write(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


if __name__ == "__main__":
    main()
