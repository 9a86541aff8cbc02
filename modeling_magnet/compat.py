"""Hides what differs between releases of transformers: the name of the key-value cache."""

import inspect
from typing import Any

from transformers import GenerationMixin

CACHE_NAMES = ("cache", "past_key_values")
"""What releases call the key-value cache: the name since 5.24, then the older one."""

_taken = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters

CACHE = next(name for name in CACHE_NAMES if name in _taken)
"""What the installed release calls it, as an argument and in what a model returns."""


def named_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """Let an older release take the cache under its newer name.

    A newer release accepts the older name itself, with a warning.

    Args:
        arguments: of `forward`, `generate` or `prepare_inputs_for_generation`.

    Returns:
        The arguments, without those names of the cache that are None.

    Raises:
        TypeError: both names are given.

    Example:
        >>> named_cache({"past_key_values": None, "use_cache": True})
        {'use_cache': True}
    """
    given = [name for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise TypeError(f"got {' and '.join(given)}, two names of one argument: give one")
    others = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    names = {name: CACHE if name == "cache" else name for name in given}
    return others | {names[name]: arguments[name] for name in given}


def cache_in(arguments: dict[str, Any]) -> Any:
    """The cache among keyword arguments, under either name; None where there is none."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)
