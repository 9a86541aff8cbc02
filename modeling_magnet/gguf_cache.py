"""Dequantizes a GGUF file once, and keeps the result as safetensors among the assets of the Hub's cache.

Without this, transformers reads the header of a GGUF file three times (for config, weights and
tokenizer) and dequantizes every weight, each time that the file is loaded.
"""

import functools
import importlib.metadata
import json
import os
from collections.abc import Container
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import cached_assets_path
from huggingface_hub.utils import WeakFileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, logging

from .atomic import atomic_write

logger = logging.get_logger(__name__)

MAX_FILE_BYTES = 1 << 30
"""The largest GGUF file whose model is kept. In float32 it takes up to eight times the space."""

HASHES = "sha256.json"
"""The file with the hashes of all others."""


def dequantized(
    place: str | os.PathLike, gguf_file: str, model_types: Container[str], **found
) -> Path | None:
    """The folder with a GGUF file's model in float32 and its tokenizer, which loads like any other.

    The folder is made when it is first asked for, by one process while others wait. Its name holds
    the file's hash and the releases of transformers and gguf that made it. Each process that reads it
    checks it first, and makes it again if a byte differs. It may be deleted at any time. A
    tokenizer that cannot be restored exactly from its files is left out.

    Args:
        place: the folder or Hub id that has the file.
        gguf_file: its name.
        model_types: the types to keep; a file of another type is not stored.
        found: further arguments of `from_pretrained` that find the file.

    Returns:
        The folder, or None if the file is not found, larger than `MAX_FILE_BYTES` or of another model type, if
        gguf is not installed, or if the cache cannot be written to (with a warning).
    """
    try:
        path: Any = cached_file(place, gguf_file, **found)
        gguf = importlib.metadata.version("gguf")
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None  # loading raises the error
    file = Path(path)
    if file.stat().st_size > MAX_FILE_BYTES:
        return None
    name = f"{_hash(file)}-transformers-{transformers.__version__}-gguf-{gguf}"
    try:
        folder = cached_assets_path("magnet", "gguf", file.stem) / name
        if not _is_intact(folder):
            with WeakFileLock(folder.with_name(f"{name}.lock")):
                if not _is_intact(folder) and not _make(folder, file, model_types):
                    return None
    except OSError as error:
        logger.warning(
            f"{file} will be dequantized at every load: the result could not be stored ({error})"
        )
        return None
    return folder


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder of `dequantized` has the tokenizer too."""
    return (folder / "tokenizer_config.json").exists()


def _make(folder: Path, file: Path, model_types: Container[str]) -> bool:
    """Fill the folder; False if the file is of a model type that is not kept."""
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
    }
    config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
    if config.model_type not in model_types:
        return False
    model: Any = AutoModelForCausalLM.from_pretrained(
        config=config, dtype=torch.float32, trust_remote_code=False, **source
    )
    model.hf_quantizer = None  # the weights are plain; these two would stop saving
    model.config.__dict__.pop("quantization_config", None)
    with atomic_write(folder) as temporary:
        model.save_pretrained(temporary)
        _save_tokenizer(source, temporary)
        hashes = {path.name: _hash(path) for path in temporary.iterdir()}
        (temporary / HASHES).write_text(json.dumps(hashes), encoding="utf-8")
    return True


def _save_tokenizer(source: dict[str, Any], folder: Path) -> None:
    """Add the tokenizer, unless it loads differently: some releases misread their own files."""
    written: tuple[str, ...] = ()
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
        written = tokenizer.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        same = _content(again) == _content(tokenizer)
    except Exception:  # any kind; it is raised again when the tokenizer is asked for
        same = False
    if not same:
        for path in written:
            Path(path).unlink(missing_ok=True)


def _content(tokenizer) -> tuple:
    return (
        type(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
        tokenizer.padding_side,
        tokenizer.model_max_length,
    )


def _is_intact(folder: Path) -> bool:
    """Whether every file of the folder is, byte for byte, what was written."""
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        return all(_hash(folder / name) == expected for name, expected in hashes.items())
    except (OSError, ValueError):
        return False


def _hash(path: Path) -> str:
    """The SHA-256 of a file's content, computed once in a process while the file stays as it is."""
    found = path.stat()
    return _computed_hash(path, found.st_size, found.st_mtime_ns, found.st_ino)


@functools.lru_cache
def _computed_hash(path: Path, *_) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()
