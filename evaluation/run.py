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
from evaluation.registry import SUITES, TASKS, Context, Result, Task
from evaluation.report import write_report
from evaluation.specs import check_code, check_tokenizer, resolve, weights_of, window_of
from evaluation.subjects import Subject, load_subject
from modeling_magnet import __version__

LIBRARIES = ("torch", "transformers", "mteb", "lm_eval", "sentence-transformers", "seqeval")


def parse(command_line: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        command_line: the words after the command's name. Default: those of this process.

    Returns:
        The options, an attribute each.

    Raises:
        SystemExit: one is unknown or wrong.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="FOLDER_OR_ID or KIND:FOLDER_OR_ID, see evaluation.specs"
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        default=[],
        help="measured beside it; ratios are to the first that generates",
    )
    parser.add_argument(
        "--suite", choices=SUITES, default="quick", help="how much of the data is used"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to measure"
    )
    parser.add_argument(
        "--data", help="folder of local data, see evaluation.data (default: the Hub)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--seed", type=int, default=0, help="of every draw, classifier and interval"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="texts in a forward pass")
    parser.add_argument(
        "--start-token", help="text of the token that begins a sequence, if not the checkpoint's"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights",
    )
    parser.add_argument(
        "--judge",
        help="language model that judges written stories (default: the first baseline that generates, or the model)",
    )
    parser.add_argument(
        "--judge-encoder",
        help="sentence encoder that compares infillings with the original (default: none)",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that encoders and sentence-transformers models bring",
    )
    options = parser.parse_args(command_line)
    if options.batch_size < 1:
        parser.error(f"--batch-size is {options.batch_size}: give 1 or more")
    return options


def check_data(options: argparse.Namespace) -> dict[str, list[list[str]]]:
    """Each task's sources, a list for each kind of its data, all read once.

    Raises:
        ValueError, OSError, ImportError: data are missing or broken, or a library is.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    data = Data(options.data, options.output / "data")
    found = {}
    for name in options.tasks:
        found[name] = [data.sources(kind) for kind in TASKS[name].data]
        for check, sources in zip(TASKS[name].checks, found[name], strict=True):
            check(sources)
    return found


class Plan:
    """What is to be measured: checked data, and for each task of each model a key to its result.

    Args:
        options: of `parse`.

    Raises:
        ValueError, OSError, ImportError: data or a model are missing, broken or do not fit a task; said
            before the first model is loaded.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.suite = options, SUITES[options.suite]
        self.specs = list(dict.fromkeys([options.model, *options.baselines]))
        self.tasks = {name: TASKS[name] for name in options.tasks}
        self.sources = check_data(options)
        self.base = next((spec for spec in self.specs[1:] if resolve(spec).generates), None)
        self.judge = options.judge or self.base
        extra = (self.judge, options.judge_encoder) if "prompting" in self.tasks else ()
        for spec in {*self.specs, *filter(None, extra)}:
            self._check_model(spec)

    def _check_model(self, spec: str) -> None:
        found, trusted = resolve(spec), self.options.trust_remote_code
        check_code(found, trusted)
        check_tokenizer(found, trusted)
        window = window_of(found)
        for name, task in self.tasks.items():
            if found.generates and window is not None and window < task.window:
                raise ValueError(
                    f"{spec} reads at most {window} tokens, the task {name} needs {task.window}: "
                    "choose other --tasks"
                )

    def key(self, spec: str, name: str) -> dict[str, Any]:
        """All that a result depends on."""
        options = self.options
        key = {
            "weights": weights_of(resolve(spec)),
            "start_token": options.start_token,
            "dtype": options.dtype,
            "data": [fingerprint(sources) for sources in self.sources[name]],
            "suite": dataclasses.asdict(self.suite),
            "seed": options.seed,
            "magnet": __version__,
        }
        if options.trust_remote_code:
            key["trust_remote_code"] = True
        if name == "prompting":
            judges = (self.judge or spec, options.judge_encoder)
            key["judges"] = [judge and weights_of(resolve(judge)) for judge in judges]
        return json.loads(json.dumps(key))

    def load(self, spec: str) -> Subject:
        """A model or a judge, loaded as the options say."""
        options = self.options
        dtype = getattr(torch, options.dtype)
        return load_subject(spec, options.start_token, dtype, options.trust_remote_code)

    def place(self, spec: str, name: str) -> Path:
        """The file of a result."""
        return self.options.output / slug(spec) / f"{name}.json"

    def done(self, spec: str, name: str) -> dict[str, Any] | None:
        """The result of an earlier run with the same key."""
        try:
            record = json.loads(self.place(spec, name).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return record if record["key"] == self.key(spec, name) else None


def run(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Measure what is not done.

    Args:
        plan: what is to be measured.

    Returns:
        A record for each task of each model, those of earlier runs included: its `model`, `task`,
        `figures` by label, each with interval and number of examples, `seconds`, `versions`; and the
        failures, each with its `error`.
    """
    records, failures = [], []
    for spec in plan.specs:
        tasks = {name: task for name, task in plan.tasks.items() if task.fits(resolve(spec))}
        missing = [name for name in tasks if plan.done(spec, name) is None]
        subject, error = None, None
        if missing:
            try:
                subject = plan.load(spec)
            except Exception as found:  # the other models are measured all the same
                error = found
        for name, task in tasks.items():
            if name not in missing:
                print(f"{spec}: {name} is done already", flush=True)
            else:
                try:
                    if subject is None:
                        raise error  # type: ignore[misc]
                    _measure(plan, subject, spec, name, task)
                except Exception as found:
                    failures.append(_failure(spec, name, found))
                    continue
            records.append(json.loads(plan.place(spec, name).read_text(encoding="utf-8")))
        del subject
        gc.collect()
    return records, failures


def _measure(plan: Plan, subject: Subject, spec: str, name: str, task: Task) -> None:
    print(f"{spec}: {name}", flush=True)
    options = plan.options
    context = Context(plan.suite, options.seed, options.batch_size)
    if name == "prompting":
        if plan.judge and plan.judge != spec:
            context = context._replace(judge_model=plan.load(plan.judge).model)
        if options.judge_encoder:
            context = context._replace(judge_encoder=plan.load(options.judge_encoder))
    began = time.monotonic()
    result: Result = task.measure(subject, context, *plan.sources[name])
    record = {
        "model": spec,
        "task": name,
        "suite": options.suite,
        "figures": {label: figure._asdict() for label, figure in result.figures.items()},
        "details": result.details,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available()
        else f"cpu ({platform.machine()}), {torch.get_num_threads()} threads",
        "versions": versions(),
        "key": plan.key(spec, name),
    }  # fmt: skip
    write_json(plan.place(spec, name), record)


def _failure(spec: str, name: str, error: Exception) -> dict[str, str]:
    trace = "".join(traceback.format_exception(error))
    print(f"{trace}\n{spec}: {name} FAILED, see above; the other tasks continue", file=sys.stderr)
    return {"model": spec, "task": name, "error": f"{type(error).__name__}: {error}"}


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on."""
    return {"python": platform.python_version(), "magnet": __version__} | {
        name: version(name) for name in LIBRARIES
    }


def slug(spec: str) -> str:
    """A file name for a model."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in spec).strip("._") or "model"


def main(command_line: list[str] | None = None) -> int:
    """The command.

    Args:
        command_line: the words after its name. Default: those of this process.

    Returns:
        The exit status: 0; 1 where a task failed; 2 where data or models do not fit.
    """
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
