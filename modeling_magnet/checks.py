"""Checks arguments that several methods take."""

from numbers import Integral
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id


def whole_number(name: str, value: Any, most: int | None = None) -> int:
    """Check that an argument is a whole number from 1 on; numpy's integers count, booleans do not.

    Args:
        name: of the argument, for the message.
        value: what was got.
        most: the largest number allowed. None: any.

    Returns:
        The number as an `int`.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below 1 or over `most`.

    Example:
        >>> whole_number("batch_size", 32)
        32
    """
    wanted = "from 1 on" if most is None else f"from 1 to {most}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}): give a whole number {wanted}"
        )
    number = int(value)
    if number < 1 or (most is not None and number > most):
        raise ValueError(f"{name} is {number}: give a whole number {wanted}")
    return number


def as_list(value, name: str) -> list:
    """A sequence of texts as a list.

    Args:
        value: what was got.
        name: of the argument, for the message.

    Raises:
        TypeError: it is not a sequence, or it is bytes or a dict.
    """
    if isinstance(value, (bytes, dict)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} is {type(value).__name__}: give a string or a sequence of strings")
    return list(value)


def check_place(place: str) -> None:
    """Tell a folder that does not exist from a Hub id.

    Raises:
        FileNotFoundError: `place` does not exist, and cannot be an id.
    """
    if Path(place).exists() and place:
        return
    try:
        validate_repo_id(place)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{place!r} is neither a folder nor a Hub id: give a folder, or an id such as user/name"
        ) from error
