"""Defines `MagnetMixin`: one causal language model that encodes, infills and generates.

The class of an architecture is the mixin before that architecture's causal-LM class of transformers. No
decoder layer, attention or rotary code is overridden.

Khosla et al., "MAGNET: Augmenting Generative Decoders with Representation Learning and Infilling
Capabilities", 2025.
"""

import functools
import inspect
from typing import Any

import torch
from transformers import GenerationMixin, LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

# Older versions of transformers copy only the files that this one names, so it names them all.
from .adapters import AdapterMixin  # noqa: F401
from .atomic import atomic_write  # noqa: F401
from .batching import map_batches  # noqa: F401
from .checkpoint import CheckpointMixin  # noqa: F401
from .checks import whole_number  # noqa: F401
from .compat import cache_in, named_cache
from .decoding import DecodingMixin  # noqa: F401
from .devices import apply_is_causal
from .encoding import EncodingMixin  # noqa: F401
from .gguf_cache import dequantized  # noqa: F401
from .infilling import InfillingMixin
from .layout import Layout  # noqa: F401
from .lengths import LengthsMixin  # noqa: F401
from .masking import (
    attention_arguments,
    cached_length,
    check_attention_mask,
    check_span_ids,
    extend_span_ids,
    sliding_window,
)
from .mixin import CausalLM
from .pooling import PoolingMixin  # noqa: F401
from .ranking import RankingMixin
from .saving import SavingMixin
from .scoring import ScoringMixin  # noqa: F401
from .settings import MagnetSettings
from .tokenizing import TextTokenizer  # noqa: F401

__all__ = ["MagnetLlamaForCausalLM", "MagnetMixin", "MagnetSettings"]


class MagnetMixin(InfillingMixin, RankingMixin, SavingMixin, CausalLM):
    """Gives a causal-LM class of transformers a span map, `encode` and `infill`.

    Without a span map the class is the one it is mixed into, bit for bit: `generate` and plain
    forward passes are untouched, at any length. With one, a model that has sliding-window layers
    takes as many tokens as its window holds, and refuses more (see `masking.sliding_window`).
    """

    def __init_subclass__(cls, **kwargs):
        """Name the class where the trainer and the pipelines look up what generates text."""
        super().__init_subclass__(**kwargs)
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[cls.__name__] = cls.__name__

    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        span_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """The base class's forward pass, with the hybrid attention mask that `span_ids` asks for.

        Args:
            input_ids: (batch, length), and all others but `span_ids`: as in the base class.
            attention_mask: (batch, past + length) 1 for tokens, 0 for padding; with `span_ids` it has
                this shape, even if the base class takes others.
            span_ids: (batch, past + length) 0 for a context token, k >= 1 for a token of the k-th
                span. Context sees all context; a span sees all context and its own earlier tokens
                (MAGNET, section 3.1). None: plain causal attention.
            cache, past_key_values: two names of the key-value cache. transformers says `cache` since
                5.24; both work here in every release.

        Returns:
            The base class's output; logits at i predict token i + 1, in every mode.

        Raises:
            TypeError, ValueError: `span_ids` is not a valid map for these tokens, it is longer than the
                window of the model's sliding-window layers, or the attention backend would drop it.

        Example:
            >>> span_ids = torch.tensor([[0, 0, 1, 1, 0]])
            >>> model(input_ids=torch.tensor([[5, 6, 7, 8, 9]]), span_ids=span_ids).logits.shape
            torch.Size([1, 5, 49152])
        """
        cached = named_cache({"cache": cache, "past_key_values": past_key_values})
        held = cache_in(cached)
        arguments: dict[str, Any] = {"attention_mask": attention_mask}
        if span_ids is not None:
            tokens = input_ids if input_ids is not None else inputs_embeds
            if tokens is None:
                raise ValueError("span_ids came without input_ids or inputs_embeds")
            batch_size, length = tokens.shape[:2]
            columns = cached_length(held) + length
            check_span_ids(span_ids, batch_size, columns)
            check_attention_mask(attention_mask, batch_size, columns)
            arguments = attention_arguments(
                self.config,
                span_ids.to(tokens.device),
                query_length=length,
                dtype=self.dtype,
                attention_mask=attention_mask,
                cache=held,
            )
        model = apply_is_causal(self, kwargs | arguments)
        return super(MagnetMixin, model).forward(
            input_ids=input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **arguments,
            **cached,
            **kwargs,
        )

    @functools.wraps(GenerationMixin.generate, assigned=(), updated=())
    def generate(self, inputs=None, *args, **kwargs):  # type: ignore[override]
        """The base class's `generate`, with a span map for the prompt: `span_ids` (batch, length).

        What is written is one open span. The cache has both names here, as in `forward`.

        Raises:
            TypeError, ValueError: `span_ids` is not a valid map of the prompt, or the assistant model
                takes no span map.
        """
        kwargs = named_cache(kwargs)
        drafts = getattr(kwargs.get("generation_config"), "is_assistant", False)
        if kwargs.get("span_ids") is not None and not drafts:  # the model it drafts for has checked
            self._check_prompt(inputs, kwargs)
        return super().generate(inputs, *args, **kwargs)

    def _check_prompt(self, inputs, arguments: dict) -> None:
        """Raise unless the span map fits this prompt, or the part of it that is cached already."""
        span_ids, prompt = arguments["span_ids"], inputs
        for name in ("input_ids", "inputs_embeds"):
            prompt = arguments.get(name) if prompt is None else prompt
        if prompt is None:
            raise ValueError("span_ids came without input_ids or inputs_embeds")
        batch_size, length = prompt.shape[:2]
        cached = cached_length(cache_in(arguments))
        continues = isinstance(span_ids, torch.Tensor) and span_ids.dim() == 2 and cached > 0
        if (
            continues and span_ids.shape[1] <= cached < length
        ):  # earlier calls continued the open span
            length = span_ids.shape[1]
        check_span_ids(span_ids, batch_size, length)
        check_attention_mask(arguments.get("attention_mask"), batch_size, prompt.shape[1])
        assistant = arguments.get("assistant_model")
        if (
            assistant is not None
            and "span_ids" not in inspect.signature(assistant.forward).parameters
        ):
            raise ValueError(
                f"assistant_model is a {type(assistant).__name__}, which takes no span map: load it with "
                "load_magnet, or leave out span_ids"
            )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids,
        span_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        cache=None,
        past_key_values=None,
        **kwargs,
    ):
        """Turn the prompt's span map into the mask of this step: new tokens are one open span."""
        cached = named_cache({"cache": cache, "past_key_values": past_key_values})
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **cached,
            **kwargs,
        )
        if span_ids is None:
            return inputs
        query = inputs.get("input_ids")
        query = query if query is not None else inputs["inputs_embeds"]
        held = cache_in(inputs)  # Phi-3 drops it where its rope changes
        columns = cached_length(held) + query.shape[1]
        if columns < span_ids.shape[1]:
            raise ValueError(
                f"this step sees {columns} of the {span_ids.shape[1]} tokens of the span map: a "
                "prompt with a span map cannot be read in chunks; leave out prefill_chunk_size"
            )
        sees_all = query.shape[1] == 1 < columns and not span_ids.any()
        if sees_all and sliding_window(self.config) is None:
            return inputs  # after context only, a single token needs no mask, as in plain decoding
        inputs.update(
            attention_arguments(
                self.config,
                extend_span_ids(span_ids, columns).to(query.device),
                query_length=query.shape[1],
                dtype=self.dtype,
                attention_mask=attention_mask,
                cache=held,
            )
        )
        return inputs


# Unless a class names GenerationMixin, AutoModel makes a new one, which no other process can unpickle.
class MagnetLlamaForCausalLM(MagnetMixin, LlamaForCausalLM, GenerationMixin):
    """A Llama that encodes, infills and generates; loads any Llama checkpoint."""
