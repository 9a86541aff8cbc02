"""`magnet serve`, in this process and in one of its own."""

import re
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from processes import start

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
    command = ("-m", "modeling_magnet.cli", "serve", folder, "--port", "0", *options)
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "log"
        log.touch()
        process = start(*command, log=log, **environment)
        try:
            while not (found := re.search(r"running on (http://\S+)\s", log.read_text())):
                assert process.is_alive(), log.read_text()
                time.sleep(0.01)
            yield found[1], process
        finally:
            process.terminate()
            process.join(60)
