"""A training step: Magnet's, a straightforward one of the same losses, and llm2vec's of MNTP alone.

The straightforward step is what the objectives' definitions say, one after the other: a forward pass
for MNTP, one for MSG and one for each view of the sentence pairs, logits of every position, sentences
padded to 128 tokens. Model, adapter, optimizer, data and losses are the same, which is checked.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from modeling_magnet.training.arguments import DataArguments, ModelArguments
from modeling_magnet.training.base import load_for_training, single_token_id
from modeling_magnet.training.collator import IGNORE, MagnetCollator
from modeling_magnet.training.data import Item
from modeling_magnet.training.objectives import info_nce

from .report import Row, timings_of
from .setup import Setup, Sizes, finished
from .texts import read_pairs
from .timing import Answer, Comparison, measure, same_figure

TEMPERATURE, SSCL = 0.1, 9.0

WARM = -1
"""The number of a small batch, to warm up on."""

Batch = dict[str, torch.Tensor]


def magnet(model: str, device: str, dtype: str, blocks, pairs):
    """Magnet's step, as `modeling_magnet.training.trainer` does it."""
    return _Steps(magnet_loss, model, device, dtype, blocks, pairs)


def straightforward(model: str, device: str, dtype: str, blocks, pairs):
    """The step that the definitions say."""
    return _Steps(_straightforward_loss, model, device, dtype, blocks, pairs)


def mntp(model: str, device: str, dtype: str, batches):
    """Magnet's step of MNTP alone, on batches that are masked already."""
    return _Steps(_mntp_loss, model, device, dtype, batches=batches)


class _Steps:
    """Takes optimizer steps on given batches."""

    def __init__(self, loss, model: str, device: str, dtype: str, blocks=(), pairs=(), batches=()):
        torch.manual_seed(0)
        arguments = ModelArguments(dtype=dtype, projection_head=not batches)
        loaded: Any = load_for_training(model, arguments)
        self.model = loaded.to(device).train()
        self.inner = self.model.get_base_model()
        self.loss, self.device, self.bf16 = loss, device, dtype == "bfloat16"
        self.optimizer = optimizer_of(self.model)
        made = collate(self.inner, blocks, pairs) if blocks else batches
        self.batches = [
            {name: torch.as_tensor(value, device=device) for name, value in batch.items()}
            for batch in made
        ]

    def __call__(self, batch: int, update: bool = True) -> Answer:
        compute = partial(self.loss, self.model, self.inner, self.batches[batch])
        return take_step(compute, self.optimizer, self.device, self.bf16, update)


def optimizer_of(model) -> torch.optim.Optimizer:
    """AdamW of what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def take_step(
    compute: Callable[[], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    device: str,
    bf16: bool,
    update: bool = True,
) -> Answer:
    """Compute a loss, go back, and update; in `seconds`, with the `loss`."""
    begin = time.perf_counter()
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
        loss = compute()
    loss.backward()
    if update:
        optimizer.step()
    optimizer.zero_grad()
    finished(device)
    return {"seconds": time.perf_counter() - begin, "loss": loss.item()}


def magnet_loss(model, inner, batch: Batch) -> torch.Tensor:
    """The weighted objectives of a step; without sentence pairs those of the blocks."""
    output = model(**batch)
    count = {name: (batch[f"{name}_labels"] != IGNORE).sum() for name in ("mntp", "msg")}
    loss = output.mntp.sum() / count["mntp"] + output.msg.sum() / count["msg"]
    if "pair_input_ids" in batch:
        loss = loss + SSCL * info_nce(output.pair_vectors[0], output.pair_vectors[1], TEMPERATURE)
    return loss


def _straightforward_loss(model, inner, batch: Batch) -> torch.Tensor:
    loss: Any = 0.0
    for labels in (batch["mntp_labels"], batch["msg_labels"]):
        logits = inner(input_ids=batch["input_ids"], span_ids=batch["span_ids"]).logits
        loss = loss + F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE
        )
    first, second = (
        F.normalize(_sentence_vectors(inner, ids, mask).float(), dim=-1)
        for ids, mask in zip(batch["pair_input_ids"], batch["pair_attention_mask"], strict=True)
    )
    similarity = first @ second.T / TEMPERATURE  # (pairs, pairs)
    return loss + SSCL * F.cross_entropy(similarity, torch.arange(len(first), device=first.device))


def _sentence_vectors(inner, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One view, every row padded to 128 tokens."""
    settings = inner.magnet_settings
    start = [settings.start_token_id] if settings.special_tokens == 2 else []
    rows = [
        [*start, *row[seen.bool()].tolist(), settings.end_token_id]
        for row, seen in zip(ids, mask, strict=True)
    ]
    length = DataArguments().pair_length
    padded = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=ids.device)
    seen = torch.tensor([[i < len(row) for i in range(length)] for row in rows], device=ids.device)
    both_sides = seen[:, None, None].expand(-1, 1, length, -1)  # (pairs, 1, length, length)
    hidden = inner.base_model(
        input_ids=padded, attention_mask=both_sides, use_cache=False
    ).last_hidden_state
    last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
    states = hidden[torch.arange(len(rows), device=ids.device), last]
    return inner.projection(states.float())


def _mntp_loss(model, inner, batch: Batch) -> torch.Tensor:
    labels = batch["labels"]
    output = model(
        input_ids=batch["input_ids"], span_ids=torch.zeros_like(labels), mntp_labels=labels
    )
    return output.mntp.sum() / (labels[:, 1:] != IGNORE).sum()


def collate(inner, blocks, pairs) -> list[Batch]:
    """A batch a step, of its blocks of token ids and its sentence pairs."""
    tokenizer = inner.tokenizer
    collator = MagnetCollator(
        tokenizer=tokenizer, settings=inner.magnet_settings,
        mask_token_id=single_token_id(tokenizer, "_", "mask_token"),
        vocab_size=inner.config.vocab_size, arguments=DataArguments(), seed=0,
        items_per_step=len(blocks[0]),
    )  # fmt: skip
    batches = []
    for n, (rows, sentences) in enumerate(zip(blocks, pairs, strict=True)):
        cuts = np.array_split(np.arange(len(sentences)), len(rows))
        items = [
            Item(n * len(rows) + i, np.array(row), None, [tuple(sentences[j]) for j in own])
            for i, (row, own) in enumerate(zip(rows, cuts, strict=True))
        ]
        batches.append(collator(items))
        batches[-1].pop("ntp_labels")
    return batches


def measure_part(setup: Setup) -> dict[str, Any]:
    """All of training: `timings`, `tokens` of a step's blocks, `left out`."""
    sizes = setup.sizes
    blocks = _blocks(setup, sizes.rounds)
    drawn = read_pairs(sizes.pairs * sizes.rounds)
    pairs = [drawn[n :: sizes.rounds] for n in range(sizes.rounds)]
    found: dict[str, Any] = {"left out": {}}
    places = {way: f"benchmarks.train:{way.lower()}" for way in ("Magnet", "straightforward")}
    blocks, pairs = [*blocks, blocks[0][:1]], [*pairs, pairs[0][:2]]
    with setup.ways(places, blocks=blocks, pairs=pairs) as ways:
        comparison = _comparison("step", ways, sizes.rounds, same_figure("loss", setup.tolerance))
        found["timings"] = measure([comparison], setup.bar)
    found["tokens"] = sizes.blocks * sizes.block_length
    if setup.llm2vec is None:
        found["left out"]["llm2vec"] = setup.why_no_llm2vec
        return found
    batches = [_masked(setup, rows, n) for n, rows in enumerate(blocks)]
    places = {"Magnet": "benchmarks.train:mntp", "llm2vec": "benchmarks.llm2vec_ways:mntp"}
    with setup.ways(places, batches=batches) as ways:
        comparison = _comparison("mntp", ways, sizes.rounds, _FirstLoss(setup.tolerance))
        found["timings"] |= measure([comparison], setup.bar)
    return found


class _FirstLoss:
    """The adapters of two versions of PEFT begin as nothing, but go on from other random numbers."""

    def __init__(self, tolerance: float):
        self.check, self.first = same_figure("loss", tolerance), True

    def __call__(self, answers: dict[str, Answer]) -> None:
        if self.first:
            self.check(answers)
        self.first = False


def _comparison(name: str, ways, rounds: int, check) -> Comparison:
    runs = {way: [partial(run, batch=n) for n in range(rounds)] for way, run in ways.items()}
    warm = [partial(run, batch=WARM, update=False) for run in ways.values()]
    return Comparison(name, runs, check, warm)


def _blocks(setup: Setup, rounds: int) -> list[list[list[int]]]:
    """(rounds, blocks, length) token ids of the documents, joined."""
    sizes = setup.sizes
    wanted = rounds * sizes.blocks * sizes.block_length
    tokens: list[int] = []
    for text in setup.texts.documents:
        tokens += setup.tokenizer(text + "\n", add_special_tokens=False)["input_ids"]
        if len(tokens) >= wanted:
            break
    while len(tokens) < wanted:  # a step costs the same whatever it reads
        tokens += tokens
    shape = rounds, sizes.blocks, sizes.block_length
    return np.array(tokens[:wanted]).reshape(shape).tolist()


def _masked(setup: Setup, rows: list[list[int]], seed: int) -> dict[str, Any]:
    """A fifth of the tokens masked and labelled, none a span."""
    tokens = np.array(rows)
    chosen = np.random.default_rng(seed).random(tokens.shape) < 0.2
    chosen[:, 0] = False
    mask_token = single_token_id(setup.tokenizer, "_", "mask_token")
    return {
        "input_ids": np.where(chosen, mask_token, tokens).tolist(),
        "labels": np.where(chosen, tokens, IGNORE).tolist(),
    }


def rows(found: dict[str, Any], sizes: Sizes) -> list[Row]:
    """The table's rows of training."""
    timings, made = timings_of(found), []
    for name, other, label, aim in (
        ("step", "straightforward", "training step", "<= 0.5"),
        ("mntp", "llm2vec", "training step, MNTP alone", None),
    ):
        ways = "Magnet", other
        row = Row.compared(f"{label}: seconds (tokens/s); {other}", timings[name], ways, aim=aim)
        if row.value is not None:
            spent = [sum(given["seconds"] for given in timings[name][way]) for way in ways]
            count = found["tokens"] * sizes.rounds
            row.ours, row.other = (
                f"{shown} ({count / seconds:.0f})"
                for shown, seconds in zip((row.ours, row.other), spent, strict=True)
            )
        memory = f"{label}: peak memory, MiB; {other}"
        made += [row, Row.of_memory(memory, timings[name], ways, aim)]
    return made
