"""MAGNET: one causal language model that encodes, infills and generates."""

from .modeling_magnet import MagnetLlamaForCausalLM, MagnetMixin
from .settings import PAPER_PROMPTS, MagnetSettings
from .version import __version__

__all__ = [
    "PAPER_PROMPTS",
    "MagnetLlamaForCausalLM",
    "MagnetMixin",
    "MagnetSettings",
    "__version__",
]
