"""The process of one way to do a job: a line of JSON in, a line of JSON out. See `timing.Worker`.

    python -m benchmarks.serve benchmarks.encode:magnet

The first line holds the arguments of `magnet`, which prepares; what it returns is called with each
further line's job and answers with a dict. Imports nothing but the standard library, so that the interpreter of another environment can
run it.
"""

import importlib
import json
import os
import sys

from .memory import peak_mib, reset_peak


def answer(run, job: dict, vectors: str | None = None) -> dict:
    """Run a job by what a way's function returned.

    The answer gets `peak_mib`, and its array `vectors` goes to a file of that name, if one is given.
    """
    reset_peak()
    found = dict(run(**job))
    found["peak_mib"] = peak_mib()
    array = found.pop("vectors", None)
    if vectors is not None and array is not None:
        import numpy as np  # in the environment of every way that has vectors

        np.save(vectors, np.asarray(array))
    return found


def main() -> None:
    """Answer requests until standard input ends."""
    (place,) = sys.argv[1:]
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, name = place.partition(":")
    run = getattr(importlib.import_module(module), name)(**json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), file=lines, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(run, **json.loads(line))), file=lines, flush=True)


if __name__ == "__main__":
    main()
