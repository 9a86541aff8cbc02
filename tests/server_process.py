"""`magnet serve`, in this process and in one of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import uvicorn

from modeling_magnet.serve.app import Server, create_app

KEY = "a-key"


@contextmanager
def serving_here(model, name, keys=(), max_body=4 << 20, **limits):
    """The address of a server on a model of this process, which ends with the block."""
    app = create_app(Server(model, name, **limits), keys, max_body)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(folder, *options, **environment):
    """The address of a server's process, and it; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "modeling_magnet.cli", "serve", str(folder), "--port", "0", *options],
        stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            raise RuntimeError("the server did not start")
        yield found[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        process.wait(60)
