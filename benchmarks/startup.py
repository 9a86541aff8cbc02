"""What is paid before the first result: imports, loading a folder, building a mask."""

import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig
from transformers.masking_utils import create_causal_mask

from modeling_magnet.masking import attention_arguments

from .report import Row, timings_of
from .setup import Setup, Sizes, finished
from .timing import ROOT, Comparison, firsts, measure, median

TIMED = "import time; begin = time.perf_counter(); {}; print(repr(time.perf_counter() - begin))"

IMPORTS = {
    "import": ("import modeling_magnet", "import transformers"),
    "class": (
        "from modeling_magnet import MagnetLlamaForCausalLM",
        "from transformers import LlamaForCausalLM",
    ),
}
"""By name: what Magnet's user writes, and what the other's."""

MASK_ROUNDS = 9

LOAD = (
    "from modeling_magnet import load_magnet; load_magnet({!r}).tokenizer",
    "from transformers import AutoTokenizer, LlamaForCausalLM; "
    "LlamaForCausalLM.from_pretrained({!r}); AutoTokenizer.from_pretrained({!r})",
)


def run_fresh(statement: str) -> dict[str, float]:
    """Seconds that a statement takes in a new process."""
    command = [sys.executable, "-c", TIMED.format(statement)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{statement}: {done.stderr.strip()[-500:]}")
    return {"seconds": float(done.stdout.splitlines()[-1])}


def masks(model: str, device: str, dtype: str):
    """Masks of both kinds, built by the job's way."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    config._attn_implementation = "sdpa"
    kind = getattr(torch, dtype)

    def run(way: str, batch: int, length: int) -> dict[str, float]:
        padding = torch.ones(batch, length, dtype=torch.long, device=device)
        padding[0, : length // 8] = 0  # without any, the causal mask is left out
        span_ids = torch.zeros(batch, length, dtype=torch.long, device=device)
        span_ids[:, length // 4 : length // 2] = 1
        embeds = torch.zeros(batch, length, 1, dtype=kind, device=device)
        finished(device)
        begin = time.perf_counter()
        if way == "hybrid":
            attention_arguments(config, span_ids, length, kind, padding)
        else:
            create_causal_mask(config, embeds, padding, past_key_values=None)
        finished(device)
        return {"seconds": time.perf_counter() - begin}

    return run


def measure_part(setup: Setup) -> dict[str, Any]:
    """All of starting: `timings` as `timing.measure` gives them."""
    model, sizes = str(setup.model), setup.sizes
    statements = IMPORTS | {"load": (LOAD[0].format(model), LOAD[1].format(model, model))}
    comparisons = [
        Comparison(
            name,
            {
                way: [partial(run_fresh, statement)] * sizes.starts
                for way, statement in zip(("Magnet", "transformers"), pair, strict=True)
            },
        )
        for name, pair in statements.items()
    ]
    timings = measure(comparisons, setup.bar)
    with setup.ways({"masks": "benchmarks.startup:masks"}) as started:
        build = partial(started["masks"], batch=sizes.mask_batch)
        comparisons = []
        for length in sizes.mask_lengths:
            runs = {
                way: [partial(build, way=way, length=length)] * MASK_ROUNDS
                for way in ("hybrid", "causal")
            }
            comparisons.append(Comparison(f"mask {length}", runs, warm=firsts(runs)))
        timings |= measure(comparisons, setup.bar)
    return {"timings": timings}


def rows(found: dict[str, Any], sizes: Sizes) -> list[Row]:
    """The table's rows of starting."""
    labels = {
        "import": "`import modeling_magnet`: ms; `import transformers`",
        "class": "import of the class: ms; of transformers' Llama",
        "load": "import, model and tokenizer loaded: ms; transformers' Llama",
    }
    labels |= {
        f"mask {n}": f"mask of {sizes.mask_batch} x {n} tokens: ms; causal"
        for n in sizes.mask_lengths
    }
    made = []
    for name, label in labels.items():
        ways = ("hybrid", "causal") if name.startswith("mask") else ("Magnet", "transformers")
        answers = timings_of(found)[name]
        made.append(Row.compared(label, answers, ways, scale=1e3))
        if name in IMPORTS:
            label = label.partition(":")[0] + ": ms over transformers'"
            made.append(Row.missing(label, "<= 50"))
            if answers:
                over = 1e3 * (median(answers["Magnet"]) - median(answers["transformers"]))
                made[-1] = Row.alone(label, over, aim="<= 50")
    return made
