"""Defines `CausalLM`, the base that the mixins assume, for readers and type checkers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    class CausalLM(LlamaForCausalLM):
        """What a causal-LM class of transformers has; its own stubs do not type-check as methods."""

        config: Any
        generate: Any
        prepare_inputs_for_generation: Any
else:  # any causal-LM class of transformers; the class of the architecture brings it
    CausalLM = object

__all__ = ["CausalLM"]
