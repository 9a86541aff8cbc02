"""Finds the class for a checkpoint by its `model_type`, and imports only that architecture."""

import importlib
import os
from typing import Any

from transformers import PreTrainedConfig

from .checkpoint import ARCHITECTURES, model_type_of, unsupported_architecture
from .modeling_magnet import MagnetMixin


def magnet_class_for(config: PreTrainedConfig) -> type[MagnetMixin]:
    """The MAGNET class of a config's architecture.

    Args:
        config: of any checkpoint; only its `model_type` is read.

    Returns:
        The class, such as `MagnetLlamaForCausalLM`.

    Raises:
        ValueError: no class is for this architecture; the message names those that exist.

    Example:
        >>> magnet_class_for(AutoConfig.from_pretrained("Qwen/Qwen3-0.6B")).__name__
        'MagnetQwen3ForCausalLM'
    """
    return _class_of(config.model_type, "the config")


def load_magnet(pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> Any:
    """Load a checkpoint of any supported architecture, with the arguments of `from_pretrained`.

    Args:
        pretrained_model_name_or_path: a folder, a Hub id, or anything else that `from_pretrained` takes.
        kwargs: of `from_pretrained`.

    Returns:
        The model, of the class that `magnet_class_for` finds.

    Raises:
        ValueError: the architecture is not supported; or as in `from_pretrained`.
        OSError: the folder or id does not exist, or has no config.

    Example:
        >>> load_magnet("Qwen/Qwen3-0.6B").infill("The old", " boats came home.")
    """
    model_type = model_type_of(pretrained_model_name_or_path, **kwargs)
    model_class = _class_of(model_type, str(pretrained_model_name_or_path))
    return model_class.from_pretrained(pretrained_model_name_or_path, **kwargs)


def _class_of(model_type: str, what: str) -> type[MagnetMixin]:
    if model_type not in ARCHITECTURES:
        raise unsupported_architecture(model_type, what)
    return getattr(importlib.import_module(__package__), ARCHITECTURES[model_type])
