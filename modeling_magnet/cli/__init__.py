"""The command `magnet`. Not part of the code that saved folders carry."""

from .app import app

__all__ = ["app"]
