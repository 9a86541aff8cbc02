"""A random Llama in the shape of the 7B: how much of the device's bf16 matrix peak is used.

Utilisation is FLOPs of `benchmarks.scale` in a second, over what one
large matrix product reaches on the same device.
"""

import dataclasses
import gc
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.training.base import linear_layers
from modeling_magnet.training.collator import IGNORE
from modeling_magnet.training.objectives import objectives_class_for

from .report import Row
from .scale import Shape, encode_flops, train_flops
from .setup import Setup, Sizes, finished
from .timing import Comparison, measure, median
from .train import collate, magnet_loss, optimizer_of, take_step

PAPER_STEPS = (4200, 800)
"""Steps, and those of them with sentence pairs."""


class Jobs:
    """Ways, a method each, all in bf16; the job names one. `model` lends its tokenizer."""

    def __init__(self, model: str, device: str, dtype: str, shape: dict[str, int], matmul: int):
        self.shape, self.device = Shape(**shape), device
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self.matrices = [
            torch.randn(matmul, matmul, dtype=torch.bfloat16, device=device) for _ in range(2)
        ]
        self.model: Any = None

    def __call__(self, way: str, **job: Any) -> dict[str, Any]:
        """Run a job by the way's method."""
        return getattr(self, way)(**job)

    def peak(self) -> dict[str, float]:
        """TFLOP/s of a square matrix product, the mean of a second's."""
        a, b = self.matrices
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < 1:
            for _ in range(10):
                torch.mm(a, b)
            finished(self.device)
            count += 10
        seconds = (time.perf_counter() - begin) / count
        return {"seconds": seconds, "tflops": 2 * len(a) ** 3 / seconds / 1e12}

    def encode(self, texts: int, length: int) -> dict[str, float]:
        """Vectors of texts of the same length, start and end token included."""
        model = self._model(training=False)
        ids = torch.randint(3, self.shape.vocab, (texts, length - 2), device=self.device)
        begin = time.perf_counter()
        with torch.no_grad():
            model.pool(ids, torch.ones_like(ids))
        finished(self.device)
        return {"seconds": time.perf_counter() - begin}

    def train(self, blocks: int, length: int, pairs: int) -> dict[str, float]:
        """A step of Magnet's training, optimizer included; `labelled` is the share of the tokens."""
        model = self._model(training=True)
        inner = model.get_base_model()
        batch = self._batch(inner, blocks, length, pairs)
        labels = torch.stack([batch["mntp_labels"], batch["msg_labels"]])
        labelled = (labels != IGNORE).sum().item() / blocks / length
        step = take_step(
            partial(magnet_loss, model, inner, batch), self.optimizer, self.device, True
        )
        return step | {"labelled": labelled}

    def fits(self, **job: Any) -> dict[str, bool]:
        """Whether a training step's memory is there."""
        try:
            self.train(**job)
            return {"fits": True}
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()
            return {"fits": False}

    def _batch(self, inner, blocks: int, length: int, pairs: int) -> dict[str, torch.Tensor]:
        drawn = np.random.default_rng(0).integers(3, self.shape.vocab, size=(blocks, length))
        (batch,) = collate(inner, [drawn], [[]])
        if pairs:
            shape = (2, pairs, length // 4 - 2)
            batch["pair_input_ids"] = torch.randint(3, self.shape.vocab, shape)
            batch["pair_attention_mask"] = torch.ones(shape, dtype=torch.long)
        return {name: value.to(self.device) for name, value in batch.items()}

    def _model(self, training: bool):
        """Made at first use; that of training has an adapter."""
        if self.model is not None and training == hasattr(self.model, "peft_config"):
            return self.model
        self.model = None
        gc.collect()
        config: Any = LlamaConfig(
            vocab_size=self.shape.vocab, hidden_size=self.shape.hidden,
            intermediate_size=self.shape.intermediate, num_hidden_layers=self.shape.layers,
            num_attention_heads=self.shape.heads, num_key_value_heads=self.shape.kv_heads,
            head_dim=self.shape.head_dim, max_position_embeddings=4096,
        )  # fmt: skip
        config.magnet = {"start_token_id": 1, "end_token_id": 2, "max_length": 4096}
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(self.device):
                model: Any = MagnetLlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        if not training:
            self.model = model.eval()
            self.model.tokenizer = self.tokenizer
            return self.model
        weights = model.state_dict()
        model = objectives_class_for(MagnetLlamaForCausalLM).from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.bfloat16
        )
        model.tokenizer = self.tokenizer
        model.to(self.device)
        model.projection.float()
        adapter = LoraConfig(
            r=16, lora_alpha=32, target_modules=linear_layers(model),
            modules_to_save=["projection"], task_type="CAUSAL_LM",
        )  # fmt: skip
        self.model = get_peft_model(model, adapter).train()
        self.optimizer = optimizer_of(self.model)
        return self.model


def measure_part(setup: Setup) -> dict[str, Any] | None:
    """All of the large model; None where the suite leaves it out.

    Returns:
        `timings`; `parts`, into how many the step is cut so that it fits; `shape` and `sizes`.
    """
    sizes = setup.sizes
    if sizes.large is None:
        return None
    given = {"shape": dataclasses.asdict(sizes.large), "matmul": sizes.matmul}
    with setup.ways({"large": "benchmarks.large:Jobs"}, **given) as started:
        run = started["large"]

        def comparison(name: str, way: str, **job) -> Comparison:
            call = partial(run, way=way, **job)
            return Comparison(name, {way: [call] * sizes.rounds}, warm=[call])

        texts = {"texts": sizes.large_texts, "length": sizes.large_length}
        timings = measure(
            [comparison("peak", "peak"), comparison("encode", "encode", **texts)], setup.bar
        )
        job, parts = _step_that_fits(run, sizes)
        steps = {"text": job | {"pairs": 0}, "text and pairs": job}
        timings |= measure(
            [comparison(name, "train", **step) for name, step in steps.items()], setup.bar
        )
    return {
        "timings": timings,
        "parts": parts,
        "shape": given["shape"],
        "sizes": {
            name: getattr(sizes, f"large_{name}") for name in ("blocks", "length", "pairs", "texts")
        },
    }


def _step_that_fits(run, sizes) -> tuple[dict[str, Any], int]:
    """The largest share of the paper's step, and how many of them make one."""
    parts = 1
    while parts <= sizes.large_blocks:
        job = {
            "blocks": sizes.large_blocks // parts,
            "length": sizes.large_length,
            "pairs": sizes.large_pairs // parts,
        }
        if run(way="fits", **job)["fits"]:
            return job, parts
        parts *= 2
    raise RuntimeError("not even one block fits into the device's memory")


def rows(found: dict[str, Any], sizes: Sizes) -> list[Row]:
    """The table's rows of the large model."""
    shape = Shape(**found["shape"]) if found else None
    name = f"random Llama of {f'{shape.decoder / 1e9:.2g}' if shape else 7}B, bf16"
    labels = (
        (f"{name}, encode at 512 tokens: % of the measured matrix peak", ">= 60"),
        (f"{name}, the paper's step: % of the measured matrix peak", ">= 55"),
        (f"{name}, the paper's run, projected: minutes", "<= 75"),
    )
    if shape is None:
        return [Row.missing(label, aim) for label, aim in labels]
    used, timings, parts = found["sizes"], found["timings"], found["parts"]
    peak = median(timings["peak"]["peak"], "tflops") * 1e12
    length, pair_length = used["length"], used["length"] // 4
    flops = used["texts"] * length * encode_flops(shape, length)
    encoding = flops / median(timings["encode"]["encode"]) / peak
    answers = timings["text and pairs"]["train"]
    labelled = median(answers, "labelled")
    work = used["blocks"] * length * train_flops(shape, length, labelled)
    work += 2 * used["pairs"] * pair_length * train_flops(shape, pair_length)
    both, text = parts * median(answers), parts * median(timings["text"]["train"])
    steps, with_pairs = PAPER_STEPS
    minutes = ((steps - with_pairs) * text + with_pairs * both) / 60
    shown = f"peak {peak / 1e12:.3g} TFLOP/s"
    cut = f"{shown}; step in {parts}" if parts > 1 else shown
    values = ((100 * encoding, shown), (100 * work / both / peak, cut), (minutes, ""))
    return [
        Row.alone(label, value, other, aim)
        for (label, aim), (value, other) in zip(labels, values, strict=True)
    ]
