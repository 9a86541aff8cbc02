"""Runs many texts in batches of similar length, on one device or several."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .checks import whole_number
from .devices import chosen_devices, inference_model

CPU_BATCH_TOKENS = 1024
"""The most tokens in a batch on a CPU, padding included. Larger batches were not faster."""

BAR_DELAY = 2.0
"""Seconds after which a call shows a progress bar in a terminal, if nobody asked for one."""


def map_batches(
    model: Any,
    vectors_of: Callable[[Any, list[int]], list[torch.Tensor]],
    lengths: list[int],
    batch_size: int,
    show_progress_bar: bool | None,
    device,
) -> list[torch.Tensor]:
    """Run `vectors_of(model, indices)` over batches of similar length, on one device or many."""
    batch_size = whole_number("batch_size", batch_size)
    devices = chosen_devices(model, device)
    on_cpu = all(device.type == "cpu" for device in devices)
    batches = batches_of(lengths, batch_size, CPU_BATCH_TOKENS if on_cpu else None)
    devices = devices[: max(1, len(batches))]
    models = {device: inference_model(model, device) for device in dict.fromkeys(devices)}
    if show_progress_bar is None and logging.get_verbosity() <= logging.INFO:
        show_progress_bar = True
    unasked = show_progress_bar is None  # tqdm's `disable=None`: only in a terminal
    bar = tqdm(
        total=len(lengths), desc="Encoding", unit="text", delay=BAR_DELAY if unasked else 0,
        disable=None if unasked else not show_progress_bar,
    )  # fmt: skip
    results: list[Any] = [None] * len(lengths)

    def work(copy, own_batches: list[list[int]]) -> None:
        with torch.no_grad():
            for batch in own_batches:
                for i, vector in zip(batch, vectors_of(copy, batch), strict=True):
                    results[i] = vector
                bar.update(len(batch))

    with bar:
        _run_in_threads(
            partial(work, models[device], batches[i :: len(devices)])
            for i, device in enumerate(devices)
        )
    return results


def batches_of(lengths: list[int], batch_size: int, max_tokens: int | None) -> list[list[int]]:
    """Indices in batches of similar length, the longest first, so that a memory error comes at once."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = not batches or len(batches[-1]) == batch_size
        if not full and max_tokens is not None:
            full = (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_tokens
        if full:
            batches.append([])
        batches[-1].append(i)
    return batches


def right_padded(token_ids: list[list[int]], device) -> dict[str, torch.Tensor]:
    """Right-pad rows with zeros, which the attention mask hides."""
    longest = max(len(ids) for ids in token_ids)
    rows = [ids + [0] * (longest - len(ids)) for ids in token_ids]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids]
    shape = (len(rows), longest)
    return {
        "input_ids": torch.tensor(rows, dtype=torch.long, device=device).reshape(shape),
        "attention_mask": torch.tensor(mask, dtype=torch.long, device=device).reshape(shape),
    }


def _run_in_threads(tasks: Iterable[Callable[[], None]]) -> None:
    """Run tasks in threads with the context of this one, in which the adapter may be off."""
    first, *others = tasks
    if not others:
        return first()
    with ThreadPoolExecutor(1 + len(others)) as pool:
        jobs = [pool.submit(copy_context().run, task) for task in (first, *others)]
        for job in jobs:
            job.result()  # raises what its thread raised
