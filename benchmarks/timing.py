"""Ways to do the same job, timed in turns, and what comes out: medians and their ratio."""

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]

Answer = dict[str, Any]
"""What a run says of itself: `seconds`, other figures, `peak_mib`."""


class DifferentResultsError(Exception):
    """Two ways that are compared do not compute the same."""


class Worker:
    """A way, in a process of its own, so that its memory is its own and nothing is shared.

    `way` is `module:function`, see `benchmarks.serve`; `arguments` are the function's.
    """

    def __init__(self, way: str, python: str = sys.executable, **arguments: Any):
        self.way = way
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.serve", way],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
            text=True,
            encoding="utf-8",
        )
        self._ready = False
        self._write(arguments)

    def __call__(self, vectors: bool = False, **job: Any) -> Answer:
        """Run a job; `vectors`: with the array that the way computes.

        Raises:
            RuntimeError: the way failed; with the end of what it wrote to standard error.
        """
        if not self._ready:
            self._read()
            self._ready = True
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/vectors.npy" if vectors else None
            self._write({"job": job, "vectors": path})
            found = self._read()
            return found | ({"vectors": np.load(path)} if path else {})

    def _write(self, content: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()

    def _read(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        written = self._errors.read().decode(errors="replace").strip().splitlines()
        raise RuntimeError(
            f"{self.way} ended with status {self._process.returncode}:\n" + "\n".join(written[-15:])
        )

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


class Here:
    """A way in this process, for trying things out: its memory cannot be told from the others'."""

    def __init__(self, way: str, python: str | None = None, **arguments: Any):
        module, _, name = way.partition(":")
        self._run: Any = getattr(importlib.import_module(module), name)(**arguments)

    def __call__(self, vectors: bool = False, **job: Any) -> Answer:
        """Run a job, as `Worker` does."""
        return dict(self._run(**job))

    def close(self) -> None:
        """Let go of the model."""
        self._run = None


@dataclass
class Comparison:
    """Ways that take turns: A B C, A B C, ..."""

    name: str  # of what is measured
    runs: Mapping[str, Sequence[Callable[[], Answer]]]  # by way a call for each round
    check: Callable[[dict[str, Answer]], None] | None = None
    """Gets each round's answers by way; raises `DifferentResultsError`."""
    warm: Sequence[Callable[[], Any]] = ()  # calls that are made once before and not counted


Timings = dict[str, dict[str, list[Answer]]]
"""By comparison and way the answer of each round."""


def measure(comparisons: Sequence[Comparison], bar) -> Timings:
    """Run all, and return all answers without `vectors` and `tokens`; `bar` is a progress bar."""
    bar.total = (bar.total or 0) + sum(len(calls) for c in comparisons for calls in c.runs.values())
    found: Timings = {}
    for comparison in comparisons:
        for call in comparison.warm:
            call()
        answers: dict[str, list[Answer]] = {way: [] for way in comparison.runs}
        for calls in zip(*comparison.runs.values(), strict=True):
            for way, call in zip(comparison.runs, calls, strict=True):
                bar.set_postfix_str(f"{comparison.name}, {way}", refresh=True)
                answers[way].append(call())
                bar.update()
            if comparison.check is not None:
                comparison.check({way: given[-1] for way, given in answers.items()})
            for given in answers.values():
                for output in ("vectors", "tokens"):
                    given[-1].pop(output, None)
        found[comparison.name] = answers
    return found


def firsts(runs: Mapping[str, Sequence[Callable[[], Answer]]]) -> list[Callable[[], Answer]]:
    """The first call of each way, to warm up."""
    return [calls[0] for calls in runs.values()]


def median(answers: Sequence[Answer], figure: str = "seconds") -> float:
    """Of a figure, over rounds."""
    return statistics.median(given[figure] for given in answers)


def same_vectors(tolerance: float) -> Callable[[dict[str, Answer]], None]:
    """A check that all ways give the first one's vectors, up to a cosine of 1 - tolerance."""

    def check(answers: dict[str, Answer]) -> None:
        (first, expected), *others = answers.items()
        for way, given in others:
            a, b = expected["vectors"], given["vectors"]
            if a.shape != b.shape:
                raise DifferentResultsError(
                    f"{way} gives vectors of shape {b.shape}, {first} of {a.shape}"
                )
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines = (a * b).sum(axis=1) / norms
            if not cosines.min() >= 1 - tolerance:  # NaN is different too
                n = int(np.nan_to_num(cosines, nan=-2).argmin())
                raise DifferentResultsError(
                    f"{way} and {first} give vectors of cosine {cosines[n]:.6f} for text {n}, "
                    f"allowed is {1 - tolerance}: they do not compute the same"
                )

    return check


def same_figure(figure: str, tolerance: float) -> Callable[[dict[str, Answer]], None]:
    """A check that all ways have the first one's figure, up to a relative difference."""

    def check(answers: dict[str, Answer]) -> None:
        (first, expected), *others = answers.items()
        for way, given in others:
            a, b = expected[figure], given[figure]
            if not abs(a - b) <= tolerance * abs(a):
                raise DifferentResultsError(
                    f"{figure} is {b} of {way} and {a} of {first}: they do not compute the same"
                )

    return check
