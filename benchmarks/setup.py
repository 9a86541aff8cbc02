"""How much is measured, with what, and the processes that do it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_magnet import MagnetSettings, load_magnet

from .scale import SHAPES, Shape
from .texts import Texts
from .timing import Here, Worker


@dataclass(frozen=True)
class Sizes:
    """How much a suite measures."""

    parts: tuple[str, ...] = ("startup", "encode", "infill", "train", "large")  # in this order
    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 3  # of every comparison
    sentences: int = 360  # mixed ones, and as many short ones; each way encodes each once
    documents: int = 30  # long texts
    lengths: tuple[int, ...] = (8, 32, 128, 512)  # words of a text, of the curve against length
    curve_words: int = 1024  # in all texts of a length
    batches: tuple[int, ...] = (1, 4, 16, 64)  # texts in a forward pass, of the curve against it
    curve_texts: int = 32  # mixed sentences of that curve
    corpus: tuple[int, ...] = (2_000, 20_000, 100_000)  # lines encoded to disk by a small model
    context: int = 400  # tokens around what is infilled
    new_tokens: int = 32  # that are written
    infill_batches: tuple[int, ...] = (1, 16)  # texts that are infilled together
    slow_tokens: tuple[int, ...] = (4, 1)  # written by ways that read all again for each
    blocks: int = 2  # of a training step
    block_length: int = 512
    pairs: int = 8
    mask_lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    mask_batch: int = 4
    starts: int = 5  # fresh processes of each import
    large: Shape | None = None  # a random model whose utilisation is measured; None: not here
    large_blocks: int = 32  # of its training step
    large_length: int = 512  # a pair's sentence has a quarter of it
    large_pairs: int = 64
    large_texts: int = 32  # as long as a block, to encode
    matmul: int = 8192  # rows and columns of the matrices that measure the device's peak
    backends: tuple[str, str] = ("sdpa", "flex_attention")  # of attention, to compare


SUITES = {
    "cpu": Sizes(),
    "gpu": Sizes(
        parts=("large", "infill", "encode", "train", "attention", "startup"),
        device="cuda", dtype="bfloat16",
        sentences=1_500, documents=150, curve_words=8_192, batches=(4, 64, 256),
        curve_texts=256, corpus=(2_000, 20_000), slow_tokens=(8, 4), blocks=16, pairs=64,
        starts=1, large=SHAPES["Llama-2-7B"],
    ),
    "tiny": Sizes(
        rounds=2, sentences=6, documents=2, lengths=(4, 16), curve_words=16, batches=(1, 4),
        curve_texts=4, corpus=(20, 40), context=24, new_tokens=4, infill_batches=(1, 2),
        slow_tokens=(2, 2), blocks=2, block_length=32, pairs=2, mask_lengths=(16, 32), starts=1,
        large=Shape(2, 64, 96, 4, 2, 16, 300), large_blocks=2, large_length=32, large_pairs=2,
        large_texts=2, matmul=64,
    ),
}  # fmt: skip
"""`cpu` and `gpu` as in the README; `tiny` shows in seconds that everything runs.

`gpu` has the parts first that a CPU cannot measure: a machine that is lent for minutes may be gone
before the last.
"""


@dataclass
class Setup:
    """What a part needs to measure."""

    model: Path  # a Magnet folder
    sizes: Sizes
    texts: Texts  # to encode, infill and train on
    output: Path  # folder for what is made on the way
    device: str
    dtype: str
    bar: Any  # a progress bar
    way_class: type[Worker] | type[Here] = Worker  # `Here` runs all in this process
    llm2vec: str | None = None  # interpreter of its environment
    llm2vec_folder: Path | None = None  # the model as that environment reads it
    why_no_llm2vec: str = ""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)

    @property
    def tolerance(self) -> float:
        """How far the results of two ways may be apart: they add in another order."""
        return 1e-4 if self.dtype == "float32" else 2e-2

    def before_and_after(self) -> dict[str, str]:
        """What `encode` puts before and after a sentence, as text."""
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        settings = MagnetSettings(**config["magnet"])
        start = settings.start_token_id if settings.start_in_encode else None
        first = "" if start is None else str(self.tokenizer.convert_ids_to_tokens(start))
        return {
            "before": first + settings.prompt_text(None, None),
            "after": str(self.tokenizer.convert_ids_to_tokens(settings.end_token_id)),
        }

    @contextlib.contextmanager
    def ways(self, places: dict[str, str], **arguments: Any) -> Iterator[dict[str, Any]]:
        """Start ways, `module:function` by name; the one called llm2vec in its environment."""
        with contextlib.ExitStack() as stack:
            started: dict[str, Worker | Here] = {}
            given = {"model": str(self.model), "device": self.device, "dtype": self.dtype}
            for name, place in places.items():
                if name == "llm2vec":
                    own = given | {"model": str(self.llm2vec_folder)} | arguments
                    started[name] = Worker(place, str(self.llm2vec), **own)
                else:
                    started[name] = self.way_class(place, **(given | arguments))
                stack.callback(started[name].close)
            yield started


def prepare_model(model: str, folder: Path) -> None:
    """Write the model as a Magnet folder with the code as it is now, which all ways then load.

    Raises:
        ValueError: its vectors are means: the ways that are compared take the end token's.
    """
    loaded = load_magnet(model, dtype="auto")
    settings: MagnetSettings = loaded.magnet_settings
    if settings.pooling != "end":
        raise ValueError(
            f"{model} has the pooling {settings.pooling!r}: give a model whose sentence vector is the "
            "end token's, which all ways can compute"
        )
    loaded.save_pretrained(folder)


def load(model: str, device: str, dtype: str, loader: Any = load_magnet, **arguments: Any) -> Any:
    """A model as ways want it."""
    loaded = loader(model, dtype=getattr(torch, dtype), **arguments)
    return loaded.to(device).eval()


def finished(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
