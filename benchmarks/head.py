"""Time and peak memory of a training step's loss: labelled tokens in chunks against all logits.

    python -m benchmarks.head
    python -m benchmarks.head --blocks 8 --length 512 --steps 5

A step of all three ways is run in a process of its own, since peak memory never falls: `labelled` is
what training does, `all logits` puts every position through the head and ignores what has no label,
`no loss` is the same step without head and loss, which is what the others' loss part is measured
from. SmolLM2-135M with a LoRA adapter, float32, on the CPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from evaluation.common.writing import markdown
from modeling_magnet.training.arguments import ModelArguments
from modeling_magnet.training.base import load_for_training, prepare_base
from modeling_magnet.training.collator import IGNORE

from .memory import peak_mib
from .train import collate

WAYS = ("no loss", "labelled", "all logits")


def measure(way: str, base: str, blocks: int, length: int, steps: int) -> dict[str, float]:
    """Run steps of one way in this process: the median `seconds` without the first, and the peak `mib`."""
    model: Any = load_for_training(base, ModelArguments(projection_head=False)).train()
    inner: Any = model.get_base_model()
    tokens = np.random.default_rng(0).integers(20, 40000, size=(blocks, length), dtype=np.int32)
    (batch,) = collate(inner, [tokens], [[]])
    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        loss_of(way, model, inner, batch).backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(seconds[1:]), "mib": peak_mib()}


def loss_of(way: str, model, inner, batch) -> torch.Tensor:
    """The sum of both text losses, or something without a head to go back from."""
    if way == "labelled":
        output = model(**batch)
        return output.mntp.sum() + output.msg.sum()
    hidden = inner._span_states(batch["input_ids"], batch["span_ids"])
    if way == "no loss":
        return hidden.square().mean()
    logits = inner.lm_head(hidden[:, :-1]).float().flatten(0, 1)
    labels = [batch[f"{name}_labels"][:, 1:].flatten() for name in ("mntp", "msg")]
    cross_entropy = partial(F.cross_entropy, ignore_index=IGNORE, reduction="sum")
    return cross_entropy(logits, labels[0]) + cross_entropy(logits, labels[1])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=4, help="blocks in a step")
    parser.add_argument("--length", type=int, default=512, help="tokens in a block")
    parser.add_argument("--steps", type=int, default=3, help="steps to take the median of")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        sizes = (chosen.blocks, chosen.length, chosen.steps)
        print(json.dumps(measure(chosen.way, chosen.base, *sizes)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        prepare_base(ModelArguments(start_token="<|endoftext|>"), [], base)
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.head", *sys.argv[1:], "--way", way]
            done = subprocess.run(
                [*command, "--base", base], check=True, stdout=subprocess.PIPE, text=True
            )
            results[way] = json.loads(done.stdout.splitlines()[-1])
    nothing, rows = results["no loss"], []
    for way, result in results.items():
        seconds, mib = (result[name] - nothing[name] for name in ("seconds", "mib"))
        cells = f"{result['seconds']:.2f}", f"{result['mib']:.0f}", f"{seconds:.2f}", f"{mib:.0f}"
        rows.append([way, *cells])
    head = ["seconds a step", "peak MiB", "loss part: seconds", "MiB"]
    print(markdown([f"{chosen.blocks} x {chosen.length}", *head], rows))


if __name__ == "__main__":
    main()
