"""The model of a command: found, loaded, put on a device, and described."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..auto import load_magnet
from ..checkpoint import PYPI, _base_of_adapter
from ..modeling_magnet import MagnetMixin
from .extras import require


def load_model(place: str, device: str = "auto", dtype: str = "auto") -> MagnetMixin:
    """Load a model and put it on a device, ready to use.

    Args:
        place: a folder, a Hub id, an adapter's folder, or `pypi:PACKAGE/FILE`.
        device: a name of torch, or `auto`: a GPU where there is one.
        dtype: `auto`, the checkpoint's own; or one of `checking.DTYPES`.

    Raises:
        OSError, ValueError, ModuleNotFoundError: nothing there that loads; what and why.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    target = _pick(device)
    base = _base_of_adapter(Path(place))
    if base is not None:
        require("peft", f"the adapter in {place}")
    if PYPI in (place[: len(PYPI)], (base or "")[: len(PYPI)]):
        require("gguf", f"the GGUF file of {base or place}")
    with _named(place, base):
        arguments = {} if dtype == "auto" else {"dtype": dtype}
        model, info = load_magnet(place, output_loading_info=True, **arguments)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{place} lacks {len(missing)} of the model's weights ({missing[0]}, ...): it is not "
            "a complete causal language model"
        )
    return model.to(target).eval()


def load_reader(place: str, device: str = "auto", dtype: str = "auto") -> MagnetMixin:
    """`load_model`, for a command that reads texts. A missing tokenizer raises now, and no text is blamed."""
    model = load_model(place, device, dtype)
    _ = model.tokenizer
    return model


def describe(model: MagnetMixin, place: str) -> dict[str, Any]:
    """What a model is and what it was adapted with."""
    config, settings, tokenizer = model.config, model.magnet_settings, model.tokenizer
    adapters: dict[str, Any] = getattr(model, "peft_config", {})
    adapter = next(iter(adapters.values()), None)
    adapted = getattr(config, "magnet", None) is not None
    lora = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)

    def token(token_id: int | None) -> dict[str, Any] | None:
        if token_id is None:
            return None
        return {"id": token_id, "text": tokenizer.convert_ids_to_tokens(token_id)}

    return {
        "model": place,
        "architecture": type(model).__name__,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "parameters": sum(weight.numel() for weight in model.parameters()) - lora,
        "dtype": str(model.dtype).removeprefix("torch."),
        "adapter": f"{adapter.peft_type.value} of rank {adapter.r}" if adapter else None,
        "adapter_parameters": lora,
        "base": adapter.base_model_name_or_path if adapter else None,
        "weights": "base and adapter" if adapter else "one set (an adapter would be merged)",
        "settings": "the checkpoint's own" if adapted else "defaults: the checkpoint has none",
        "start_token": token(settings.start_token_id),
        "start_in_encode": settings.start_in_encode,
        "end_token": token(settings.end_token_id),
        "pooling": settings.pooling,
        "max_length": settings.max_length,
        "default_prompt_name": settings.default_prompt_name,
        "prompts": settings.prompts,
    }


def fingerprint(model: MagnetMixin) -> str:
    """Tells models apart by their settings, dtype and the first values of each weight."""
    digest = hashlib.sha256(json.dumps(model.magnet_settings.to_dict(), sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        values = weight.flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + values)
    return digest.hexdigest()[:16]


def _pick(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        device = "mps" if device == "cpu" and torch.backends.mps.is_available() else device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(f"--device is {device!r}, which is not usable here: {error}") from error
    return torch.device(device)


@contextlib.contextmanager
def _named(place: str, base: str | None) -> Iterator[None]:
    """Errors that name the model, and an adapter's base."""
    try:
        yield
    except (ModuleNotFoundError, OSError, ValueError) as error:
        kind = next(k for k in (ModuleNotFoundError, OSError, ValueError) if isinstance(error, k))
        what = place if base is None else f"{place} is an adapter on {base}, which does not load"
        if not place.startswith(PYPI) and not Path(place).exists():
            what = f"there is no folder {place}, and no Hub model of that id loads"
        text = str(error)
        raise kind(text if text.startswith(place) else f"{what}: {text}") from error
