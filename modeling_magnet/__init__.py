"""MAGNET: one causal language model that encodes, infills and generates."""

import importlib
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .architectures import (
        MagnetGemma2ForCausalLM,
        MagnetGemma3ForCausalLM,
        MagnetMistralForCausalLM,
        MagnetPhi3ForCausalLM,
        MagnetPhiForCausalLM,
        MagnetQwen2ForCausalLM,
        MagnetQwen3ForCausalLM,
    )
    from .auto import load_magnet, magnet_class_for
    from .checkpoint import ARCHITECTURES
    from .modeling_magnet import MagnetLlamaForCausalLM, MagnetMixin
    from .settings import PAPER_PROMPTS, MagnetSettings

__all__ = [
    "ARCHITECTURES",
    "PAPER_PROMPTS",
    "MagnetGemma2ForCausalLM",
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

_MODULES = {
    "ARCHITECTURES": "checkpoint",
    "MagnetLlamaForCausalLM": "modeling_magnet",
    "MagnetMixin": "modeling_magnet",
    "MagnetSettings": "settings",
    "PAPER_PROMPTS": "settings",
    "load_magnet": "auto",
    "magnet_class_for": "auto",
}  # of the other names: architectures


def __getattr__(name: str):
    """Import what is asked for: torch and the models of transformers take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES.get(name, 'architectures')}", __name__)
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
