"""Packages that only some inputs and outputs need."""

import importlib
import importlib.util
from typing import Any

EXTRA = "cli"
"""The extra of pyproject.toml that brings most of them."""


def check_installed(module: str, purpose: str, extra: str = EXTRA) -> None:
    """Find a module's package without importing it.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed: "
            f'pip install "modeling-magnet[{extra}]"'
        )


def require(module: str, purpose: str, extra: str = EXTRA) -> Any:
    """Import a module of an optional package; raises as `check_installed`."""
    check_installed(module, purpose, extra)
    return importlib.import_module(module)
