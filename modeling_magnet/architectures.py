"""Defines MAGNET's class of each architecture other than Llama: the mixin before its causal-LM class."""

from transformers import (
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GenerationMixin,
    MistralForCausalLM,
    Phi3ForCausalLM,
    PhiForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

# Older versions of transformers copy only the files that this one names, so it names them all.
from .adapters import AdapterMixin  # noqa: F401
from .atomic import atomic_write  # noqa: F401
from .batching import map_batches  # noqa: F401
from .checkpoint import CheckpointMixin  # noqa: F401
from .checks import whole_number  # noqa: F401
from .compat import named_cache  # noqa: F401
from .decoding import DecodingMixin  # noqa: F401
from .devices import inference_model  # noqa: F401
from .encoding import EncodingMixin  # noqa: F401
from .gguf_cache import dequantized  # noqa: F401
from .infilling import InfillingMixin  # noqa: F401
from .layout import Layout  # noqa: F401
from .lengths import LengthsMixin  # noqa: F401
from .masking import sliding_window  # noqa: F401
from .mixin import CausalLM  # noqa: F401
from .modeling_magnet import MagnetMixin
from .pooling import PoolingMixin  # noqa: F401
from .ranking import RankingMixin  # noqa: F401
from .saving import SavingMixin  # noqa: F401
from .scoring import ScoringMixin  # noqa: F401
from .settings import MagnetSettings  # noqa: F401
from .tokenizing import TextTokenizer  # noqa: F401

__all__ = [
    "MagnetGemma2ForCausalLM",
    "MagnetGemma3ForCausalLM",
    "MagnetMistralForCausalLM",
    "MagnetPhi3ForCausalLM",
    "MagnetPhiForCausalLM",
    "MagnetQwen2ForCausalLM",
    "MagnetQwen3ForCausalLM",
]


class MagnetGemma2ForCausalLM(MagnetMixin, Gemma2ForCausalLM, GenerationMixin):
    """A Gemma 2 that encodes, infills and generates."""

    _supports_sdpa = (
        False  # which drops the cap on attention scores; older versions did so silently
    )


class MagnetGemma3ForCausalLM(MagnetMixin, Gemma3ForCausalLM, GenerationMixin):
    """A Gemma 3 (text only) that encodes, infills and generates."""


class MagnetMistralForCausalLM(MagnetMixin, MistralForCausalLM, GenerationMixin):
    """A Mistral that encodes, infills and generates."""


class MagnetPhi3ForCausalLM(MagnetMixin, Phi3ForCausalLM, GenerationMixin):  # type: ignore[misc]
    """A Phi-3, Phi-3.5 or Phi-4 that encodes, infills and generates."""


class MagnetPhiForCausalLM(MagnetMixin, PhiForCausalLM, GenerationMixin):
    """A Phi-1, Phi-1.5 or Phi-2 that encodes, infills and generates."""


class MagnetQwen2ForCausalLM(MagnetMixin, Qwen2ForCausalLM, GenerationMixin):
    """A Qwen2 or Qwen2.5 that encodes, infills and generates."""


class MagnetQwen3ForCausalLM(MagnetMixin, Qwen3ForCausalLM, GenerationMixin):
    """A Qwen3 that encodes, infills and generates."""
