"""`python -m modeling_magnet.cli` is `magnet`."""

from .app import app

app(prog_name="magnet")
