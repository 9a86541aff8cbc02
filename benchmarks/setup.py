"""How much is measured, with what, and the processes that do it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_magnet import MagnetSettings, load_magnet

from .scale import Shape
from .texts import Texts
from .timing import Here, Worker

LLAMA_7B = Shape(32, 4096, 11008, 32, 32, 128, 32000)


@dataclass(frozen=True)
class Sizes:
    """How much a suite measures.

    Attributes:
        parts: what is measured, in this order.
        device, dtype: of all models.
        rounds: of every comparison.
        sentences: mixed ones, and as many short ones; each is encoded once by each way.
        documents: long texts.
        lengths: words of the texts of the curve against length; `curve_words` words in all.
        batches: texts in a forward pass, of the curve against it; `curve_texts` mixed sentences.
        corpus: lines that are encoded to disk, by a small model.
        context: tokens around what is infilled.
        new_tokens: that are written.
        infill_batches: texts that are infilled together.
        slow_tokens: written by ways that read everything again for each.
        blocks, block_length, pairs: of a training step.
        mask_lengths: of the masks that are built; `mask_batch` of them at a time.
        starts: fresh processes of each import.
        large: the shape of the random model whose utilisation is measured; None: not here.
        large_blocks, large_length, large_pairs: of its training step; `large_texts` texts of as many
            tokens as a block are encoded. Pairs have a quarter of a block's tokens.
        matmul: rows and columns of the matrices that measure the device's peak.
        backends: of attention, that are compared.
    """

    parts: tuple[str, ...] = ("startup", "encode", "infill", "train", "large")
    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 3
    sentences: int = 360
    documents: int = 30
    lengths: tuple[int, ...] = (8, 32, 128, 512)
    curve_words: int = 1024
    batches: tuple[int, ...] = (1, 4, 16, 64)
    curve_texts: int = 32
    corpus: tuple[int, ...] = (2_000, 20_000, 100_000)
    context: int = 400
    new_tokens: int = 32
    infill_batches: tuple[int, ...] = (1, 16)
    slow_tokens: tuple[int, ...] = (4, 1)
    blocks: int = 2
    block_length: int = 512
    pairs: int = 8
    mask_lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    mask_batch: int = 4
    starts: int = 5
    large: Shape | None = None
    large_blocks: int = 32
    large_length: int = 512
    large_pairs: int = 64
    large_texts: int = 32
    matmul: int = 8192
    backends: tuple[str, str] = ("sdpa", "flex_attention")


SUITES = {
    "cpu": Sizes(),
    "gpu": Sizes(
        parts=("large", "infill", "encode", "train", "attention", "startup"),
        device="cuda", dtype="bfloat16",
        sentences=1_500, documents=150, curve_words=8_192, batches=(4, 64, 256),
        curve_texts=256, corpus=(2_000, 20_000), slow_tokens=(8, 4), blocks=16, pairs=64,
        starts=1, large=LLAMA_7B,
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
    """What a part needs to measure.

    Attributes:
        model: a Magnet folder.
        sizes: how much.
        texts: to encode, infill and train on.
        output: folder for what is made on the way.
        device, dtype: of all models.
        bar: a progress bar.
        way_class: `Worker`, or `Here` to run all in this process.
        llm2vec: interpreter of its environment, None where there is none.
        llm2vec_folder: the model as that environment reads it.
        why_no_llm2vec: the reason.
    """

    model: Path
    sizes: Sizes
    texts: Texts
    output: Path
    device: str
    dtype: str
    bar: Any
    way_class: type[Worker] | type[Here] = Worker
    llm2vec: str | None = None
    llm2vec_folder: Path | None = None
    why_no_llm2vec: str = ""
    _tokenizer: list[PreTrainedTokenizerBase] = field(default_factory=list)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        if not self._tokenizer:
            found = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
            self._tokenizer.append(found)
        return self._tokenizer[0]

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
            started = {}
            for name, place in places.items():
                common = {"model": str(self.model), "device": self.device, "dtype": self.dtype}
                way: Worker | Here
                if name == "llm2vec":
                    common["model"] = str(self.llm2vec_folder)
                    way = Worker(place, str(self.llm2vec), **(common | arguments))
                else:
                    way = self.way_class(place, **(common | arguments))
                stack.callback(way.close)
                started[name] = way
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
