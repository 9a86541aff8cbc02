"""Adapts and fine-tunes models: arguments -> data -> collator -> objectives -> trainer."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import MagnetConfig
    from .evaluating import SentenceEvaluation
    from .trainer import MagnetTrainer

__all__ = ["MagnetConfig", "MagnetTrainer", "SentenceEvaluation"]

_MODULES = {
    "MagnetConfig": "config",
    "MagnetTrainer": "trainer",
    "SentenceEvaluation": "evaluating",
}


def __getattr__(name: str):
    """Import what is asked for: PEFT and the Trainer take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"training needs {error.name}: pip install 'modeling-magnet[train]'"
        ) from error
