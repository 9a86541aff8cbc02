"""Where the time of a job goes, by operator.

    python -m benchmarks.profiling encode --model outputs/quickstart/base
    python -m benchmarks.profiling infill --model outputs/quickstart/base
    python -m benchmarks.profiling train --model outputs/quickstart/base --trace train.json

`--trace` is for chrome://tracing or ui.perfetto.dev.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer

from . import encode, infill, train
from .texts import dealt, read_pairs, read_texts

JOBS = ("encode", "infill", "train")


def job_of(name: str, options: argparse.Namespace) -> Callable[[], Any]:
    """What is profiled: a small share of what `benchmarks.run` measures, real texts included."""
    place = options.model, options.device, options.dtype
    texts = read_texts([])
    if name == "encode":
        run: Any = encode.magnet(*place, before="", after="")
        mixed = dealt(texts.mixed[:480], 480 // options.sentences)[0]
        return lambda: run(texts=mixed)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts.documents[:16]]
    if name == "infill":
        run = infill.Jobs(*place)
        size = options.length // (infill.BLANKS + 1)
        parts = [ids[0][n * size :][:size] for n in range(infill.BLANKS + 1)]
        return lambda: run(way="blanks", parts=parts, length=32)
    tokens = [token for text in ids for token in text]
    rows = [tokens[n * options.length :][: options.length] for n in range(options.blocks)]
    pairs = read_pairs(12 * options.blocks)
    run = train.magnet(*place, blocks=[rows], pairs=[pairs])
    return lambda: run(batch=0)


def main(command_line: list[str] | None = None) -> None:
    """Print the operators that take most."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("job", choices=JOBS)
    add("--model", required=True, help="a Magnet folder")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--sentences", type=int, default=96, help="mixed ones, of encode (a divisor of 480)")
    add("--length", type=int, default=400, help="tokens of a block, or around four blanks")
    add("--blocks", type=int, default=2, help="of the training step, with 12 sentence pairs each")
    add("--rows", type=int, default=15, help="operators that are shown")
    add("--trace", type=Path, help="file to write a trace to")
    options = parser.parse_args(command_line)
    job = job_of(options.job, options)
    job()  # warm
    activities = [ProfilerActivity.CPU]
    if options.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=False) as found:
        job()
    order = "self_cuda_time_total" if len(activities) > 1 else "self_cpu_time_total"
    print(
        found.key_averages().table(sort_by=order, row_limit=options.rows, max_name_column_width=40)
    )
    if options.trace:
        found.export_chrome_trace(str(options.trace))


if __name__ == "__main__":
    main()
