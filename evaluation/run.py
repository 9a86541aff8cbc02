"""Measure a model, and baselines beside it, on what the paper measures.

    python -m evaluation.run --model outputs/quickstart/model --baselines bidirectional:outputs/quickstart/base \\
        --suite quick --data DIR --output outputs/evaluation
    python -m evaluation.run --model FOLDER --tasks sts words --suite paper --data DIR --output DIR

Everything that can be checked is checked before the first model is loaded. Each task of each model is
written when it is done, and not done again by a later run with the same settings, data and weights. A
task that fails leaves the others' results; the exit status is then 1. Written to `--output`:
`results.json`, `report.md`, plots, and a folder for each model, whose `prompting.json` holds the
infillings that were written, for reading and for `evaluation.studies.ratings`.
"""

import argparse
import dataclasses
import gc
import json
import platform
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from evaluation.common.writing import write_json
from evaluation.data import Data, fingerprint
from evaluation.models import Model, load_model
from evaluation.names import check_code, check_tokenizer, resolve, weights_of, window_of
from evaluation.registry import CHECKS, SUITES, TASKS, Context
from evaluation.report import write_report
from modeling_magnet import __version__

LIBRARIES = ("torch", "transformers", "mteb", "lm_eval", "sentence-transformers", "seqeval")


def parse(command_line: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; by default that of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="FOLDER_OR_ID or KIND:FOLDER_OR_ID, see evaluation.names")
    add("--baselines", nargs="+", default=[], help="others; ratios are to the first that generates")
    add("--suite", choices=SUITES, default="quick", help="how much of the data is used")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to measure")
    add("--data", help="folder of local data, see evaluation.data (default: the Hub)")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--seed", type=int, default=0, help="of every draw, classifier and interval")
    add("--batch-size", type=int, default=8, help="texts in a forward pass")
    add("--start-token", help="text of the token that begins a sequence, if not the checkpoint's")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", default="float32", choices=dtypes, help="of the weights")
    judges = "the first baseline that generates, or the model"
    add("--judge", help=f"language model that judges written stories (default: {judges})")
    add("--judge-encoder", help="sentence encoder that compares infillings with the original")
    code = "run the code that encoders and sentence-transformers models bring"
    add("--trust-remote-code", action="store_true", help=code)
    options = parser.parse_args(command_line)
    if options.batch_size < 1:
        parser.error(f"--batch-size is {options.batch_size}: give 1 or more")
    return options


def check_data(options: argparse.Namespace) -> dict[str, list[str]]:
    """The sources of each kind of data that the tasks need, all read once.

    Raises:
        ValueError, OSError, ImportError: data are missing or broken, or a library is.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    data = Data(options.data, options.output / "data")
    sources = {kind: data.sources(kind) for task in options.tasks for kind in TASKS[task].data}
    for kind, found in sources.items():
        CHECKS[kind](found)
    return sources


class Plan:
    """What is to be measured: checked data, and for each task of each model a key to its result.

    Raises:
        ValueError, OSError, ImportError: data or a model are missing, broken or do not fit a task; said
            before the first model is loaded.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.suite = options, SUITES[options.suite]
        self.models = list(dict.fromkeys([options.model, *options.baselines]))
        self.sources = check_data(options)
        self.base = next((model for model in self.models[1:] if resolve(model).generates), None)
        self.judge = options.judge or self.base
        judges = (self.judge, options.judge_encoder) if "prompting" in options.tasks else ()
        for model in {*self.models, *filter(None, judges)}:
            self._check_model(model)

    def _check_model(self, model: str) -> None:
        name, trusted = resolve(model), self.options.trust_remote_code
        check_code(name, trusted)
        check_tokenizer(name, trusted)
        window = window_of(name)
        for task in self.options.tasks:
            needed = TASKS[task].window
            if name.generates and window is not None and window < needed:
                raise ValueError(
                    f"{model} reads at most {window} tokens, the task {task} needs {needed}: "
                    "choose other --tasks"
                )

    def data_of(self, task: str) -> list[list[str]]:
        """The sources of each kind of a task's data."""
        return [self.sources[kind] for kind in TASKS[task].data]

    def key(self, model: str, task: str) -> dict[str, Any]:
        """All that a result depends on."""
        options = self.options
        key = {
            "weights": weights_of(resolve(model)),
            "start_token": options.start_token,
            "dtype": options.dtype,
            "data": [fingerprint(sources) for sources in self.data_of(task)],
            "suite": dataclasses.asdict(self.suite),
            "seed": options.seed,
            "magnet": __version__,
        }
        if options.trust_remote_code:
            key["trust_remote_code"] = True
        if task == "prompting":
            judges = (self.judge or model, options.judge_encoder)
            key["judges"] = [judge and weights_of(resolve(judge)) for judge in judges]
        return json.loads(json.dumps(key))

    def load(self, model: str) -> Model:
        """A model or a judge, loaded as the options say."""
        options = self.options
        dtype = getattr(torch, options.dtype)
        return load_model(model, options.start_token, dtype, options.trust_remote_code)

    def place(self, model: str, task: str) -> Path:
        """The file of a result."""
        return self.options.output / slug(model) / f"{task}.json"

    def done(self, model: str, task: str) -> dict[str, Any] | None:
        """The result of an earlier run with the same key."""
        try:
            record = json.loads(self.place(model, task).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return record if record["key"] == self.key(model, task) else None


def run(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Measure what is not done.

    Returns:
        A record for each task of each model, those of earlier runs included: its `model`, `task`,
        `figures` by label, each with interval and number of examples, `seconds`, `versions`; and the
        failures, each with its `error`.
    """
    records, failures = [], []
    for name in plan.models:
        model: Model | Exception | None = None
        for task in plan.options.tasks:
            if not TASKS[task].fits(resolve(name)):
                continue
            record = plan.done(name, task)
            try:
                if record is None:
                    model = model or _loaded(plan, name)
                    if isinstance(model, Exception):
                        raise model
                    record = _measure(plan, model, name, task)
                else:
                    print(f"{name}: {task} is done already", flush=True)
                records.append(record)
            except Exception as error:  # the other tasks are measured all the same
                failures.append(_failure(name, task, error))
        del model
        gc.collect()
    return records, failures


def _loaded(plan: Plan, name: str) -> Model | Exception:
    """A model, or why it does not load, so that no later task tries it again."""
    try:
        return plan.load(name)
    except Exception as error:
        return error


def _measure(plan: Plan, model: Model, name: str, task: str) -> dict[str, Any]:
    """Measure a task and write its record."""
    print(f"{name}: {task}", flush=True)
    options = plan.options
    context = Context(plan.suite, options.seed, options.batch_size)
    if task == "prompting":
        if plan.judge and plan.judge != name:
            context = context._replace(judge_model=plan.load(plan.judge).language_model)
        if options.judge_encoder:
            context = context._replace(judge_encoder=plan.load(options.judge_encoder))
    measured = model.language_model if TASKS[task].needs == "generation" else model
    began = time.monotonic()
    result = TASKS[task].measure(measured, context, *plan.data_of(task))
    record = {
        "model": name,
        "task": task,
        "suite": options.suite,
        "figures": {label: figure._asdict() for label, figure in result.figures.items()},
        "details": result.details,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available()
        else f"cpu ({platform.machine()}), {torch.get_num_threads()} threads",
        "versions": versions(),
        "key": plan.key(name, task),
    }  # fmt: skip
    write_json(plan.place(name, task), record)
    return record


def _failure(model: str, task: str, error: Exception) -> dict[str, str]:
    trace = "".join(traceback.format_exception(error))
    print(f"{trace}\n{model}: {task} FAILED, see above; the other tasks continue", file=sys.stderr)
    return {"model": model, "task": task, "error": f"{type(error).__name__}: {error}"}


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on."""
    found = {name: version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "magnet": __version__} | found


def slug(model: str) -> str:
    """A file name for a model."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in model).strip("._") or "model"


def main(command_line: list[str] | None = None) -> int:
    """The command; returns the exit status: 0; 1 where a task failed; 2 where data or models do not fit."""
    options = parse(command_line)
    try:
        plan = Plan(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    records, failures = run(plan)
    write_json(options.output / "results.json", {"results": records, "failures": failures})
    print(write_report(options.output, records, failures, plan.base))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
