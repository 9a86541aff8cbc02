"""New Python processes that need not import anything first.

Each is forked from a server that has imported what takes seconds, and that has done nothing else: it
holds no model and runs no thread. Start a process as usual where its imports, or what they read from
the environment, are part of the test.
"""

import gc
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["modeling_magnet.architectures", "modeling_magnet.training.train", "sentence_transformers"]
)


def start(
    *arguments, log: Path, errors: Path | None = None, stdin: Path | None = None, cwd: Path = ROOT,
    largest: int | None = None, **environment: str,
) -> BaseProcess:  # fmt: skip
    """Start `python -m MODULE ...`, `-c CODE ...` or `FILE ...`; its output and errors go to files.

    No file that it writes may have more than `largest` bytes: so a full disk looks to a program.
    """
    files = (stdin or os.devnull, log, errors or log)
    words = list(map(str, arguments))
    environment = {**os.environ, **environment}
    process = SERVER.Process(target=_become, args=(words, files, cwd, largest, environment))
    process.start()
    return process


def run(*arguments, input: str = "", **how) -> subprocess.CompletedProcess:
    """The same, to its end."""
    with tempfile.TemporaryDirectory() as folder:
        stdin, log, errors = (Path(folder) / name for name in ("stdin", "stdout", "stderr"))
        stdin.write_text(input)
        process = start(*arguments, stdin=stdin, log=log, errors=errors, **how)
        process.join()
        written = log.read_text(), errors.read_text()
    return subprocess.CompletedProcess(arguments, process.exitcode, *written)


def run_in(processes: int, *arguments) -> None:
    """The same in several processes that are one distributed run, with the variables of `torchrun`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    with tempfile.TemporaryDirectory() as folder:
        started = {}
        for rank in map(str, range(processes)):
            log = Path(folder) / rank
            started[log] = start(*arguments, log=log, RANK=rank, LOCAL_RANK=rank, **shared)
        try:
            for log, process in started.items():
                process.join(300)
                assert process.exitcode == 0, log.read_text()[-3000:]
        finally:
            for process in started.values():
                process.kill()


def _become(arguments, files, cwd, largest, environment) -> None:
    """Make of a fork what the command line would have made of a new process."""
    gc.freeze()
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_APPEND | os.O_CREAT | (os.O_RDWR if number else 0)), number)
    sys.stdin = os.fdopen(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = arguments[1:] if arguments[0] in ("-m", "-c") else arguments
    match arguments:
        case ["-m", module, *_]:
            sys.modules.pop(module, None)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *_]:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case [file, *_]:
            sys.path.insert(0, str(Path(file).parent))
            runpy.run_path(file, run_name="__main__")
