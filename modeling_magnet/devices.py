"""Makes views and copies of a model that compute elsewhere or otherwise, and leaves the model unchanged."""

import copy
import functools
from types import FunctionType, MethodType
from typing import Any

import torch


def usable_device(device: str | int | torch.device) -> torch.device:
    """The device of a name. `cuda` becomes `cuda:<current>`, since two devices compare only with an index.

    Args:
        device: any form that torch accepts.

    Raises:
        ValueError: torch does not know it, this machine does not have it, or it holds no values.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        found = torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:  # asserted: torch is built with CUDA
        first = str(error).partition("\n")[0]
        raise ValueError(f"device is {device!r}, which is not usable here: {first}") from error
    if found.type == "meta":
        raise ValueError("device is 'meta', whose tensors hold no values: give one that computes")
    return found


def input_device(model) -> torch.device:
    """The device on which a model takes its tokens. accelerate moves weights there if it put them elsewhere."""
    hook = getattr(model, "_hf_hook", None)
    return model.device if hook is None else torch.device(hook.execution_device)


def chosen_devices(model, device) -> list[torch.device]:
    """The devices that `encode` is to use.

    Args:
        model: a MAGNET model.
        device: a name, a list of names, or None: where the model is.

    Raises:
        ValueError: one is not usable, the list is empty, or accelerate has placed the weights.
    """
    names = device if isinstance(device, (list, tuple)) else [device]
    if not names:
        raise ValueError("device is an empty list: name at least one device")
    here = input_device(model)
    devices = [here if name is None else usable_device(name) for name in names]
    if hasattr(model, "_hf_hook") and devices != [here]:
        raise ValueError(
            f"device is {device!r}, but the model was loaded with a device_map, by which accelerate "
            "moves its weights: leave out device"
        )
    return devices


def inference_model(model, device: torch.device | None = None) -> Any:
    """The model in evaluation mode and on a device: the model itself if it already is, else a copy.

    Switching dropout off or moving weights would affect every thread that uses the model, and running
    out of memory on the way would leave it half moved. So the model itself does not change. The copy
    shares all weights that need not move.

    Args:
        model: a MAGNET model.
        device: of `chosen_devices`. None: where the model is.
    """
    moves = device is not None and device != input_device(model)
    if not moves and not any(module.training for module in model.modules()):
        return model
    weights = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        shared = {id(weight): weight.to(device) if moves else weight for weight in weights}
    shared[id(model._tokenizer)] = model._tokenizer
    other = copy.deepcopy(model, shared)
    for name in ("forward", "_compiled_call"):  # functions that were compiled for the model itself
        if isinstance(vars(other).get(name), FunctionType):
            delattr(other, name)
    return other.eval()


def apply_is_causal(model, arguments: dict[str, Any]) -> Any:
    """The model for a call with these arguments: the model itself or, for `is_causal=False`, a view of it.

    transformers writes that argument into the config during the call, and calls in other threads would
    read it there. The view shares everything except the config.

    Args:
        model: a causal language model, or its decoder.
        arguments: of its forward pass. Only flash attention gets `is_causal`.
    """
    if arguments.get("is_causal") is not False:
        return model
    view = view_of(model)
    view.config = copy.copy(model.config)
    view.config.is_causal = False
    if model.base_model is not model:
        decoder = apply_is_causal(model.base_model, arguments)
        view._modules = model._modules | {model.base_model_prefix: decoder}
    return view


def first_layers(decoder, num_layers: int) -> Any:
    """A view of a decoder with only its first layers, which shares everything else.

    transformers' own forward pass then runs these layers and the final norm. The decoder itself keeps all
    layers, for other threads and calls.

    Args:
        decoder: the base model of a causal language model.
        num_layers: from 1 to the number that it has.
    """
    view = view_of(decoder)
    view._modules = decoder._modules | {"layers": decoder.layers[:num_layers]}
    return view


def view_of(module) -> Any:
    """A shallow copy, which shares everything with the module but runs itself.

    If `torch.compile` or accelerate replaced the module's `forward`, that one would run the module.
    """
    view = copy.copy(module)
    forward = vars(view).pop("forward", None)
    if isinstance(forward, functools.partial):  # accelerate's, which calls `_old_forward`
        view._old_forward = MethodType(module._old_forward.__func__, view)
        view.forward = functools.partial(forward.func, view)
    return view
