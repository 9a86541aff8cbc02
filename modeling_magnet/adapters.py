"""An adapter that is not merged: added, chosen, and switched off for a while.

PEFT injects an adapter's layers into the model. transformers' methods for them are here once more, on
PEFT's own functions: a release of transformers may ask in its own for a release of PEFT that does not
exist yet.
"""

import contextlib
import sys
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

from .mixin import CausalLM

switched_off: ContextVar[frozenset[str]] = ContextVar("switched_off", default=frozenset())
"""The models that are without their adapter in this thread, or this task of asyncio."""


def _peft() -> Any:
    """PEFT, imported where there is an adapter: nobody else must install it."""
    try:
        import peft.functional
    except ImportError as error:
        raise ImportError("an adapter needs PEFT: pip install peft") from error
    return peft


def adapter_layers(model) -> list[Any]:
    """The layers of a model that PEFT has put in: adapted ones, and replaced or retrained ones."""
    if "peft" not in sys.modules:
        return []
    peft = _peft()
    kinds = (peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.other.AuxiliaryTrainingWrapper)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _as_base(switch: str, layer, args: tuple, kwargs: dict[str, Any]):
    """Ask, before a layer runs, whether it is off: then every row is one of the base's."""
    if switch not in switched_off.get():
        return None
    return args, kwargs | {"adapter_names": ["__base__"] * len(args[0])}


class AdapterMixin(CausalLM):
    """`without_adapter`, and the methods of transformers' `PeftAdapterMixin` but `load_adapter`."""

    peft_config: dict[str, Any]

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base model for a while: inside, `generate` writes what the base does, bit for bit.

        For a model with a LoRA adapter that is not merged. As with `torch.no_grad()`, it holds for
        the thread that opened it, or the task of asyncio: meanwhile other threads have the adapter,
        and a thread that is started inside has it until it opens a block of its own. Blocks may be
        nested; what `disable_adapters` and `set_adapter` set stays as it is.

        Raises:
            ValueError: there is no adapter, because it was merged into the weights or never was; or
                it is of another kind than LoRA.

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

    def add_adapter(self, adapter_config, adapter_name: str | None = None) -> None:
        """Add a new adapter, and use it.

        Args:
            adapter_config: such as `peft.LoraConfig`.
            adapter_name: default `"default"`.

        Raises:
            ValueError: the model has an adapter of that name.
        """
        name = adapter_name or "default"
        if name in getattr(self, "peft_config", {}):
            raise ValueError(f"the model has an adapter named {name!r}: give adapter_name another")
        adapter_config.base_model_name_or_path = self.name_or_path
        adapter_config.task_type = adapter_config.task_type or "CAUSAL_LM"  # or PEFT cannot open it
        _peft().inject_adapter_in_model(adapter_config, self, name)
        self._hf_peft_config_loaded = True
        self.set_adapter(name)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Use one adapter, or several together, and no other."""
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        unknown = set(names) - set(self._adapters())
        if unknown:
            raise ValueError(f"no adapter named {sorted(unknown)}; there are {self._adapters()}")
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
        """Be the base model in every thread, until `enable_adapters`. See also `without_adapter`."""
        self._adapters()
        for layer in adapter_layers(self):
            layer.enable_adapters(False)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """Remove adapters from the model."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name not in self._adapters():
                raise ValueError(f"no adapter named {name!r}; there are {self._adapters()}")
            prefix = f"{self.peft_config[name].peft_type.value.lower()}_"
            _peft().functional.delete_adapter(self, adapter_name=name, prefix=prefix)
            del self.peft_config[name]
        if not self.peft_config:
            del self.peft_config
            self._hf_peft_config_loaded = False

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict | None = None
    ) -> dict:
        """The weights of one adapter; by default of the first in use."""
        name = adapter_name or self.active_adapters()[0]
        return _peft().get_peft_model_state_dict(self, state_dict=state_dict, adapter_name=name)

    def _adapters(self) -> list[str]:
        if not self._hf_peft_config_loaded:
            raise ValueError("the model has no adapter: load_adapter and add_adapter give it one")
        return list(self.peft_config)
