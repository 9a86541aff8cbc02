"""What differs between releases of transformers, in one place."""

import inspect
from typing import Any

from transformers import GenerationMixin

CACHE_NAMES = ("cache", "past_key_values")
"""What releases call the key-value cache: the name since 5.24, then the one before it."""

_taken = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters

CACHE = next(name for name in CACHE_NAMES if name in _taken)
"""What the installed release calls it, as an argument and in what a model returns."""


def named_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """Rename the cache among keyword arguments to what the installed release calls it.

    Args:
        arguments: of `forward`, `generate` or `prepare_inputs_for_generation`.

    Returns:
        The arguments, with the cache as `CACHE` where there is one.

    Raises:
        TypeError: both names are given.

    Example:
        >>> named_cache({"past_key_values": None, "use_cache": True})
        {'use_cache': True}
    """
    arguments = dict(arguments)
    given = [name for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise TypeError(f"got {' and '.join(given)}, two names of one argument: give one")
    caches = [arguments.pop(name, None) for name in CACHE_NAMES]
    cache = next((cache for cache in caches if cache is not None), None)
    return arguments if cache is None else arguments | {CACHE: cache}
