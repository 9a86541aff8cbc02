"""MAGNET: one causal language model that encodes, infills and generates."""

import importlib
from typing import TYPE_CHECKING

from .auto import load_magnet, magnet_class_for
from .checkpoint import ARCHITECTURES
from .modeling_magnet import MagnetLlamaForCausalLM, MagnetMixin
from .settings import PAPER_PROMPTS, MagnetSettings
from .version import __version__

if TYPE_CHECKING:
    from .architectures import (
        MagnetGemma3ForCausalLM,
        MagnetMistralForCausalLM,
        MagnetPhi3ForCausalLM,
        MagnetPhiForCausalLM,
        MagnetQwen2ForCausalLM,
        MagnetQwen3ForCausalLM,
    )

__all__ = [
    "ARCHITECTURES",
    "PAPER_PROMPTS",
    "MagnetGemma3ForCausalLM",
    "MagnetLlamaForCausalLM",
    "MagnetMistralForCausalLM",
    "MagnetMixin",
    "MagnetPhi3ForCausalLM",
    "MagnetPhiForCausalLM",
    "MagnetQwen2ForCausalLM",
    "MagnetQwen3ForCausalLM",
    "MagnetSettings",
    "__version__",
    "load_magnet",
    "magnet_class_for",
]


def __getattr__(name: str):
    """Import the classes of other architectures than Llama when they are asked for."""
    if name in ARCHITECTURES.values():
        return getattr(importlib.import_module(".architectures", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
