"""What can be found wrong before torch is imported, which takes seconds."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .extras import check_installed

DTYPES = ("auto", "float32", "bfloat16", "float16")

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa")
"""Kinds of devices, each with a number or without; `meta` and the like compute nothing."""

PRECISIONS = ("float32", "binary", "ubinary")
"""Those in which a vector does not depend on the others; int8's range is that of all vectors."""

FORMATS = ("npy", "parquet", "jsonl")

EXPORTS = ("magnet", "plain", "encoder", "onnx", "gguf", "gguf-encoder")
"""What `--to` can name."""

ENCODERS = ("encoder", "onnx", "gguf-encoder")
"""Those that encode and do nothing else."""


def _of(choices: Sequence[str], hint: str = "") -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"give one of {', '.join(choices)}{hint}"


LEAST_1 = (
    "batch_size", "shard_size", "truncate_dim", "num_layers", "span_length", "max_new_tokens",
    "top_k", "samples",
)  # fmt: skip

RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(LEAST_1, (lambda value: value >= 1, "give 1 or more")),
    "seed": (lambda value: 0 <= value < 2**32, "give 0 to 4294967295"),
    "temperature": (
        lambda value: 0 < value < math.inf,
        "give more than 0, or leave it out for the likeliest tokens",
    ),
    "top_p": (lambda value: 0 < value <= 1, "give more than 0, up to 1"),
    "blank": (bool, "give what marks a blank"),
    "dtype": _of(DTYPES),
    "device": (
        re.compile(rf"({'|'.join(DEVICES)})(:\d+)?").fullmatch,
        f"give one of {', '.join(DEVICES)}, or one with a number, such as cuda:1",
    ),
    "format": _of(FORMATS),
    "precision": _of(
        PRECISIONS,
        " (for int8, whose range is that of all vectors together, encode to float32 and use "
        "sentence_transformers.util.quantize_embeddings)",
    ),
    "to": _of(EXPORTS),
}
"""Of each option that not every value fits: which do, and what to do. None is never checked."""


def check_options(given: dict[str, Any]) -> None:
    """Check the options of a command one by one.

    Raises:
        ValueError: an option has an unusable value.
        OSError, ModuleNotFoundError: as in `check_model`.
    """
    for name, value in given.items():
        if value is not None and name in RULES:
            fits, advice = RULES[name]
            if not fits(value):
                raise ValueError(f"--{name.replace('_', '-')} is {value!r}: {advice}")
    check_model(given["model"])


def check_model(place: str) -> None:
    """Tell a missing folder from a Hub id.

    Raises:
        OSError: `place` is neither, or a folder without a model.
        ModuleNotFoundError: it is an adapter, and PEFT is not installed.
    """
    from ..checks import check_place  # what it imports takes a while

    path = Path(place)
    if place.startswith("pypi:"):
        check_installed("gguf", f"the GGUF file of {place}")
    elif (path / "adapter_config.json").is_file():
        check_installed("peft", f"the adapter in {place}")
    elif path.is_dir() and place:
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{place} is a folder without a model: it has neither config.json nor "
                "adapter_config.json"
            )
    elif path.exists() and place:
        raise NotADirectoryError(f"{place} is a file: give the folder of a model")
    else:
        check_place(place)


def check_lines(output: str) -> None:
    """Check the name of a file of JSON lines.

    Raises:
        ValueError: it ends like a file of another kind.
        OSError: it is a folder, or in none that exists.
    """
    path = Path(output)
    if path.is_dir():
        raise IsADirectoryError(
            f"{output} is a folder: give the name of a file that ends in .jsonl"
        )
    if path.suffix != ".jsonl" and not is_special(path):
        raise ValueError(f"--output is {output!r}: JSON lines go into a file that ends in .jsonl")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Refuse a file whose folder does not exist, so that a mistyped path creates no folders."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist: create {path.parent} first")


def is_special(path: Path) -> bool:
    """Whether it exists and is no file, such as /dev/null or a pipe: written to, never replaced."""
    return path.exists() and not path.is_file()


def check_export(
    to: str, out: Path, num_layers: int | None = None, truncate_dim: int | None = None
) -> None:
    """Refuse what an export would not write.

    Raises:
        ValueError: the name does not end as the export's does, or it takes no such option.
        OSError: something exists there, or a file's folder does not.
        ModuleNotFoundError: a package that the export needs is not installed.
    """
    if num_layers is not None and to not in ENCODERS:
        raise ValueError(f"--num-layers is for --to {', '.join(ENCODERS)}, this is --to {to}")
    if truncate_dim is not None and to != "encoder":
        raise ValueError(f"--truncate-dim is for --to encoder, this is --to {to}")
    if to == "onnx":
        check_installed("onnxscript", "--to onnx", "onnx")
    if to.startswith("gguf"):
        check_installed("gguf", f"--to {to}")
        if out.suffix != ".gguf":
            raise ValueError(f"--to {to} writes a file: give a name that ends in .gguf")
        if out.exists():
            raise FileExistsError(f"{out} exists: give a new name")
        check_parent(out)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty: give a new folder")


def is_file_of_vectors(output: str) -> bool:
    """Whether vectors go into one file of this name, rather than a folder of shards.

    Raises:
        ValueError: it is the name of neither.
        FileNotFoundError: the file's folder does not exist.
    """
    path = Path(output)
    if path.is_dir() or output.endswith("/"):
        return False
    if path.suffix.removeprefix(".") in FORMATS and not is_special(path):
        check_parent(path)
        return True
    if path.suffix or path.exists():
        raise ValueError(
            f"--output is {output!r}: vectors go into a file that ends in .npy, .parquet or .jsonl, or "
            "into a folder of shards (end its name with / if it contains a dot)"
        )
    return False


def check_repo_id(repo_id: str) -> None:
    """Raise unless a text can be the id of a repository on the Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a Hub id: give one such as user/name") from error
