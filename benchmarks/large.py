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
from modeling_magnet.training.arguments import DataArguments
from modeling_magnet.training.base import linear_layers
from modeling_magnet.training.collator import IGNORE, MagnetCollator
from modeling_magnet.training.data import Item
from modeling_magnet.training.objectives import info_nce, objectives_class_for

from .report import Row
from .scale import Shape, encode_flops, train_flops
from .setup import Setup, Sizes, finished
from .timing import Comparison, measure, median

PAPER_STEPS = (4200, 800)
"""Steps, and those of them with sentence pairs."""


def ways(model: str, device: str, dtype: str, shape: dict[str, int], matmul: int):
    """All ways; the job names one. `model` lends its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    jobs = Jobs(Shape(**shape), tokenizer, device, matmul)
    return lambda way, **job: getattr(jobs, way)(**job)


class Jobs:
    """A method a way, all in bf16."""

    def __init__(self, shape: Shape, tokenizer, device: str, matmul: int):
        self.shape, self.tokenizer, self.device = shape, tokenizer, device
        self.matrices = [
            torch.randn(matmul, matmul, dtype=torch.bfloat16, device=device) for _ in range(2)
        ]
        self.model: Any = None

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
        count = {name: (batch[f"{name}_labels"] != IGNORE).sum() for name in ("mntp", "msg")}
        kind = torch.device(self.device).type
        begin = time.perf_counter()
        with torch.autocast(kind, torch.bfloat16):
            output = model(**batch)
            loss = output.mntp.sum() / count["mntp"] + output.msg.sum() / count["msg"]
            if pairs:
                loss = loss + 9 * info_nce(output.pair_vectors[0], output.pair_vectors[1], 0.1)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        finished(self.device)
        labelled = sum(count.values()).item() / blocks / length  # type: ignore[union-attr]
        return {"seconds": time.perf_counter() - begin, "labelled": labelled}

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
        collator = MagnetCollator(
            tokenizer=self.tokenizer, settings=inner.magnet_settings, mask_token_id=3,
            vocab_size=self.shape.vocab, arguments=DataArguments(), seed=0, items_a_step=blocks,
        )  # fmt: skip
        drawn = np.random.default_rng(0).integers(3, self.shape.vocab, size=(blocks, length))
        batch = collator([Item(i, block, None, []) for i, block in enumerate(drawn)])
        batch.pop("ntp_labels")
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
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=3e-5)
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
    with setup.ways({"large": "benchmarks.large:ways"}, **given) as started:
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


def rows(found: dict[str, Any] | None, sizes: Sizes) -> list[Row]:
    """The table's rows of the large model; None where it was not measured."""
    name = "7B" if found is None else f"{Shape(**found['shape']).decoder / 1e9:.2g}B"
    encode = f"random Llama of {name}, bf16, encode at 512 tokens: % of the measured matrix peak"
    train = f"random Llama of {name}, bf16, the paper's step: % of the measured matrix peak"
    whole = f"random Llama of {name}, bf16, the paper's run, projected: minutes"
    if found is None:
        return [
            Row.missing(encode, ">= 60"), Row.missing(train, ">= 55"), Row.missing(whole, "<= 75")
        ]  # fmt: skip
    shape, used, timings = Shape(**found["shape"]), found["sizes"], found["timings"]
    peak = median(timings["peak"]["peak"], "tflops") * 1e12
    length = used["length"]
    flops = used["texts"] * length * encode_flops(shape, length)
    encoding = flops / median(timings["encode"]["encode"]) / peak
    blocks, pairs = used["blocks"], used["pairs"]
    answers = timings["text and pairs"]["train"]
    labelled = median(answers, "labelled")
    work = blocks * length * train_flops(shape, length, labelled)
    work += 2 * pairs * (length // 4) * train_flops(shape, length // 4)
    both = found["parts"] * median(answers)
    text = found["parts"] * median(timings["text"]["train"])
    steps, with_pairs = PAPER_STEPS
    minutes = ((steps - with_pairs) * text + with_pairs * both) / 60
    shown = f"peak {peak / 1e12:.3g} TFLOP/s"
    cut = f"{shown}; step in {found['parts']}" if found["parts"] > 1 else shown
    return [
        Row.alone(encode, 100 * encoding, shown, ">= 60"),
        Row.alone(train, 100 * work / both / peak, cut, ">= 55"),
        Row.alone(whole, minutes, "", "<= 75"),
    ]
