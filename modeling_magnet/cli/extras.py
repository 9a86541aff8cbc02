"""Packages that only some inputs and outputs need."""

import importlib
import importlib.util
from typing import Any

EXTRA = "cli"
"""The extra of pyproject.toml that brings most of them."""


def require(module: str, purpose: str, extra: str = EXTRA) -> Any:
    """Import a module of an optional package.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed: "
            f'pip install "modeling-magnet[{extra}]"'
        )
    return importlib.import_module(module)
