"""Adds, chooses and switches off adapters that are not merged into the weights.

PEFT injects an adapter's layers into the model. This module defines transformers' methods for them again,
on PEFT's own functions, because a release of transformers may require a release of PEFT that does not
exist yet.
"""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

from .mixin import CausalLM

switched_off: ContextVar[frozenset[str]] = ContextVar("switched_off", default=frozenset())
"""The models whose adapter is off in this thread, or in this asyncio task."""


def _peft() -> Any:
    """Import PEFT, which only users of adapters need to install."""
    try:
        import peft.functional
    except ImportError as error:
        raise ImportError("an adapter needs PEFT: pip install peft") from error
    return peft


def adapter_layers(model) -> list[Any]:
    """The layers that PEFT put into a model: adapted, replaced or retrained ones."""
    if "peft" not in sys.modules:
        return []
    peft = _peft()
    kinds = (peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.other.AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _as_base(switch: str, layer, args: tuple, kwargs: dict[str, Any]):
    """Check, before a layer runs, whether the adapter is off. If it is, every row uses the base."""
    if switch not in switched_off.get():
        return None
    return args, kwargs | {"adapter_names": ["__base__"] * len(args[0])}


def _read_adapter(folder: str) -> tuple[Any, dict[str, Any]]:
    """The config of an adapter's folder, and the weights by their names in the model."""
    if not any(name.startswith("adapter_model.") for name in os.listdir(folder)):
        raise OSError(f"{folder} has no adapter_model.safetensors: give an adapter's whole folder")
    peft = _peft()
    try:
        config = peft.PeftConfig.from_pretrained(folder)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"PEFT {peft.__version__} does not read the adapter_config.json of {folder} "
            f"({type(error).__name__}: {error})"
        ) from error
    weights = peft.utils.load_peft_weights(folder, device="cpu")
    return config, {name.removeprefix("base_model.model."): w for name, w in weights.items()}


class AdapterMixin(CausalLM):
    """`without_adapter`, and the methods of transformers' `PeftAdapterMixin`."""

    peft_config: dict[str, Any]

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Switch the adapter off inside the block, where the model is its base, bit for bit.

        For a model with an unmerged LoRA adapter. Like `torch.no_grad()`, it holds for the thread that
        opened it, or for the asyncio task. Other threads keep the adapter, and so does a thread that
        is started inside, until it opens its own block. Blocks may be nested. They do not change what
        `disable_adapters` and `set_adapter` did.

        Raises:
            ValueError: the model has no adapter (it may have been merged into the weights), the adapter
                is not LoRA, or it repeats layers (`layer_replication`).

        Example:
            >>> with model.without_adapter():
            ...     base_output = model.generate(**inputs, max_new_tokens=20)
        """
        layers, adapters = adapter_layers(self), getattr(self, "peft_config", {})
        if not layers or not adapters:
            raise ValueError(
                f"this {type(self).__name__} has no adapter to switch off: load the adapter's folder, "
                "not the merged model"
            )
        kinds = {config.peft_type.value for config in adapters.values()} - {"LORA"}
        if kinds:
            raise ValueError(
                f"the adapter is {', '.join(sorted(kinds))}: only LORA is switched off"
            )
        if any(getattr(config, "layer_replication", None) for config in adapters.values()):
            raise ValueError("the adapter repeats layers of its base: load the base itself")
        switch = vars(self).setdefault("_adapter_switch", uuid.uuid4().hex)
        for layer in layers:
            hooks = layer._forward_pre_hooks.values()
            if not any(getattr(hook, "func", None) is _as_base for hook in hooks):
                layer.register_forward_pre_hook(partial(_as_base, switch), with_kwargs=True)
        before = switched_off.set(switched_off.get() | {switch})
        try:
            yield
        finally:
            switched_off.reset(before)

    def load_adapter(  # type: ignore[override]
        self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs
    ):
        """Load an adapter from a folder, and use it.

        If tokens were added, so that the folder holds more embeddings than the model, the model is
        resized to match.

        Args:
            peft_model_id: the folder. Anything else is passed on to transformers' `load_adapter`.
            adapter_name: default `"default"`.
            kwargs: of transformers' `load_adapter`.

        Raises:
            OSError: the folder holds no weights.
            ValueError: PEFT cannot read its config; the adapter does not fit the model, because weights
                are missing or unknown, which leaves the model unchanged; its name is taken; or
                `device_map` has put the model's weights elsewhere.
        """
        if peft_model_id is None or kwargs or not os.path.isdir(peft_model_id):
            return super().load_adapter(peft_model_id, adapter_name, **kwargs)
        peft, name = _peft(), self._free_name(adapter_name)
        if any(weight.is_meta for weight in self.parameters()):
            raise ValueError(
                "device_map has put weights on the disk or another device, where an adapter cannot "
                "follow: load the model without device_map, or merge the adapter first (magnet export)"
            )
        config, weights = _read_adapter(peft_model_id)
        config.inference_mode = True
        size = self.config.vocab_size
        try:
            self._fit_embeddings(config, weights)
            peft.inject_adapter_in_model(config, self, name)
            found = peft.set_peft_model_state_dict(self, dict(weights), name)
            own = peft.get_peft_model_state_dict(
                self, adapter_name=name, save_embedding_layers=False
            )
            if missing := own.keys() - weights.keys():
                raise KeyError(min(missing))
            if strange := [key for key in found.unexpected_keys if ".lora_" in key]:
                raise ValueError(
                    f"it holds {min(strange)}, but the model has no such layer to adapt"
                )
        except Exception as error:  # of whatever kind: PEFT lets many be raised by what it calls
            self._remove_adapter(name, config)
            self.resize_token_embeddings(size)
            lacks = "it lacks " if isinstance(error, KeyError) else ""
            raise ValueError(
                f"the adapter in {peft_model_id} does not fit the model: {lacks}{error}"
            ) from error
        self._hf_peft_config_loaded = True
        self.eval()

    def _fit_embeddings(self, config, weights: dict[str, Any]) -> None:
        """Resize the embeddings to those that an adapter holds, or of which it trains single rows."""
        embedding: Any = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embedding)
        held = [
            len(weight)
            for key, weight in weights.items()
            if key.startswith(f"{name}.") and key.endswith(".weight") and weight.dim() == 2
        ]
        trained = getattr(config, "trainable_token_indices", None) or []
        if isinstance(trained, dict):  # by the module's name
            trained = [index for indices in trained.values() for index in indices]
        size = embedding.weight.shape[0]
        needed = held[0] if held else max([size, *(index + 1 for index in trained)])
        if needed != size:
            self.resize_token_embeddings(needed, mean_resizing=False)

    def add_adapter(self, adapter_config, adapter_name: str | None = None) -> None:
        """Add a new adapter, and use it.

        Args:
            adapter_config: such as `peft.LoraConfig`.
            adapter_name: default `"default"`.

        Raises:
            ValueError: the model has an adapter of that name.
        """
        name = self._free_name(adapter_name)
        adapter_config.base_model_name_or_path = self.name_or_path
        adapter_config.task_type = adapter_config.task_type or "CAUSAL_LM"  # or PEFT cannot open it
        _peft().inject_adapter_in_model(adapter_config, self, name)
        self._hf_peft_config_loaded = True
        self.set_adapter(name)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Use one adapter, or several together, and no others."""
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        unknown = set(names) - set(self._adapters())
        if unknown:
            raise ValueError(
                f"no adapter named {sorted(unknown)}: the model has {self._adapters()}"
            )
        _peft().functional.set_adapter(self, adapter_name)

    def active_adapters(self) -> list[str]:
        """The names of the adapters in use."""
        self._adapters()
        return list(adapter_layers(self)[0].active_adapters)

    def enable_adapters(self) -> None:
        """Use the adapter again after `disable_adapters`, in every thread."""
        self._adapters()
        for layer in adapter_layers(self):
            layer.enable_adapters(True)

    def disable_adapters(self) -> None:
        """Switch the adapter off in every thread, until `enable_adapters`. See also `without_adapter`."""
        self._adapters()
        for layer in adapter_layers(self):
            layer.enable_adapters(False)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """Remove adapters from the model. Without the last one, the model is its base again."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name not in self._adapters():
                raise ValueError(f"no adapter named {name!r}: the model has {self._adapters()}")
            self._remove_adapter(name, self.peft_config[name])

    def _remove_adapter(self, name: str, config) -> None:
        """Remove an adapter, even one that PEFT put in only in part.

        When PEFT deletes the last adapter, its layers stay, and would be saved under weight names that
        no model finds. So this removes them too.
        """
        prefix = f"{config.peft_type.value.lower()}_"
        _peft().functional.delete_adapter(self, adapter_name=name, prefix=prefix)
        for layer in adapter_layers(self):
            paths = [path for path, module in self.named_modules() if module is layer]
            if (
                paths and not layer._get_available_adapters()
            ):  # no path: inside one that went before
                held = hasattr(layer, "original_module")
                self.set_submodule(
                    paths[0], layer.original_module if held else layer.get_base_layer()
                )
        adapters = vars(self).get("peft_config", {})
        adapters.pop(name, None)
        if not adapters:
            vars(self).pop("peft_config", None)
            self._hf_peft_config_loaded = False

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict | None = None
    ) -> dict:
        """The weights of one adapter, by default the first in use."""
        given = {
            "state_dict": state_dict,
            "adapter_name": adapter_name or self.active_adapters()[0],
        }
        read = partial(_peft().get_peft_model_state_dict, self, **given)
        weights = read(save_embedding_layers=False)
        held = {weight.data_ptr() for weight in weights.values()}
        for name, weight in read().items():  # where tokens were added, embeddings: of several names
            if weight.data_ptr() not in held:
                held.add(weight.data_ptr())
                weights[name] = weight
        return weights

    def _free_name(self, name: str | None) -> str:
        name = name or "default"
        if name in getattr(self, "peft_config", {}):
            raise ValueError(
                f"the model already has an adapter named {name!r}: give another adapter_name"
            )
        return name

    def _adapters(self) -> list[str]:
        if not self._hf_peft_config_loaded:
            raise ValueError("the model has no adapter: call load_adapter or add_adapter first")
        return list(self.peft_config)
