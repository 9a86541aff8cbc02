"""Sentence, token and word vectors (MAGNET, sections 3.2.2 and 4.1)."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .checkpoint import CheckpointMixin
from .checks import whole_number
from .devices import as_asked, chosen_devices, first_layers, inference_model, input_device
from .masking import CONTEXT, attention_arguments, check_attention_mask
from .tokenizing import check_text

CPU_BATCH_TOKENS = 1024
"""Tokens of a batch on a CPU, padding included: larger batches took no less time."""

BAR_DELAY = 2.0
"""Seconds after which a call that nobody asked for a progress bar shows one in a terminal."""

View = Callable[[Any], Any]
"""From a decoder to what is called in its place."""

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


class EncodingMixin(CheckpointMixin):
    """`encode`, `encode_tokens` and `encode_words` for a causal language model with a span map."""

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        truncation: bool = False,
        num_layers: int | None = None,
    ) -> Any:
        """Encode sentences: one vector each, with fully bidirectional attention.

        A sentence becomes `start token + prompt + sentence + end token` (without the first where the
        checkpoint's `start_in_encode` is false), every token is context, and the vector is the last
        layer's output at the end token (MAGNET, section 3.2.2). The argument names are those of
        `sentence_transformers.SentenceTransformer.encode`.

        Args:
            sentences: a text, or a sequence of texts.
            prompt_name: the named prompt to put before each sentence. Default: the checkpoint's
                `default_prompt_name`.
            prompt: the text of the prompt itself instead; `""` for none.
            batch_size: the most sentences in a forward pass. Batches are made of similar lengths; on
                a CPU those of long texts are smaller.
            show_progress_bar: None shows it in a terminal where the call takes longer than two
                seconds, and always where transformers' log level is `info` or below.
            output_value: `"sentence_embedding"`, or `"token_embeddings"` for what `encode_tokens`
                returns (of the sentences without a prompt).
            precision: `"float32"`, or `"int8"`, `"uint8"`, `"binary"`, `"ubinary"` as in
                sentence-transformers, which must then be installed.
            convert_to_numpy: return an array. False, with `convert_to_tensor` False: a list of
                tensors.
            convert_to_tensor: return one tensor, on the model's device (several devices: the
                first).
            device: where to encode: a copy of the model there, for this call. None: where the model
                is. A list of devices: copies on each share the work, in threads of this process.
            normalize_embeddings: scale the vectors to length 1 (after `truncate_dim`).
            truncate_dim: keep this many leading dimensions.
            truncation: cut texts that are longer than the checkpoint's `max_length`, with a warning.
                False: they raise.
            num_layers: stop after this many layers; the final norm and the pooling are the same, and the
                later layers do not run. Of use with a model that was trained so, as with `truncate_dim`
                (docs/how-to/matryoshka.md). None: all.

        Returns:
            (hidden,) for one text, (texts, hidden) in the order given for a sequence; float32.

        Raises:
            TypeError: `sentences` holds something that is no string, or a number is no whole number.
            ValueError: a text is too long, a prompt name is unknown, a choice or a number is none of
                those above, a device is not usable, or the model returned NaN or infinity.

        Example:
            >>> vectors = model.encode(["A cat sleeps.", "A dog runs."])
            >>> vectors.shape
            (2, 576)
        """
        if output_value == "token_embeddings":
            return self.encode_tokens(
                sentences, batch_size=batch_size, show_progress_bar=show_progress_bar,
                convert_to_numpy=convert_to_numpy and not convert_to_tensor, device=device,
                truncation=truncation, num_layers=num_layers,
            )  # fmt: skip
        if output_value != "sentence_embedding":
            raise ValueError(
                f"output_value is {output_value!r}: give 'sentence_embedding' or 'token_embeddings'"
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}: give one of {', '.join(PRECISIONS)}")
        hidden_size = self.config.hidden_size
        if truncate_dim is not None:
            truncate_dim = whole_number("truncate_dim", truncate_dim, most=hidden_size)
        num_layers = self._checked_layers(num_layers)
        texts, single = _as_list(sentences)
        prompt_text = self.magnet_settings.prompt_text(prompt_name, prompt)
        token_ids = self._tokenize(
            [prompt_text + text for text in texts],
            truncation,
            extra_tokens=self.magnet_settings.special_tokens,
        )

        def vectors_of(model, batch: list[int]) -> list[torch.Tensor]:
            inputs = _pad([token_ids[i] for i in batch], input_device(model))
            return list(model.pool(**inputs, num_layers=num_layers).float().cpu())

        rows = self._map_batches(
            vectors_of, [len(ids) for ids in token_ids], batch_size, show_progress_bar, device
        )
        vectors = torch.stack(rows) if rows else torch.empty(0, hidden_size)  # (texts, hidden)
        vectors = vectors[:, :truncate_dim]
        if normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if not torch.isfinite(vectors).all():
            raise ValueError(
                f"the model returned NaN or infinity in {self.dtype}: load it with "
                "dtype=torch.float32 or torch.bfloat16"
            )
        if precision != "float32":
            vectors = _quantize(vectors, precision)
        if single:
            vectors = vectors[0]
        if convert_to_tensor:
            first: Any = device[0] if isinstance(device, (list, tuple)) else device
            return vectors.to(input_device(self) if first is None else first)
        if convert_to_numpy:
            return vectors.numpy()
        return vectors if single else list(vectors)

    def encode_tokens(
        self,
        sentences: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        truncation: bool = False,
        num_layers: int | None = None,
    ) -> Any:
        """Encode sentences: one vector per token, with fully bidirectional attention.

        The vector of token i is the output at i - 1, the position that was trained to predict it
        (MAGNET, section 4.1); the start token stands before the first. No prompt is added.

        Args:
            sentences: a text, or a sequence of texts.
            batch_size: as in `encode`.
            show_progress_bar: as in `encode`.
            convert_to_numpy: return arrays; False: tensors on the CPU.
            device: as in `encode`.
            truncation: as in `encode`.
            num_layers: as in `encode`.

        Returns:
            (tokens, hidden) for one text; for a sequence a list of them in the order given. The
            tokens are those of `model.text_tokenizer.ids([text])`.

        Raises:
            TypeError, ValueError: as in `encode`; and the checkpoint has no start token.

        Example:
            >>> model.encode_tokens("A cat sleeps.").shape
            (5, 576)
        """
        texts, single = _as_list(sentences)
        token_ids = self._tokenize(texts, truncation, extra_tokens=1)
        rows = self._token_vectors(token_ids, batch_size, show_progress_bar, device, num_layers)
        vectors = [row.numpy() for row in rows] if convert_to_numpy else rows
        return vectors[0] if single else vectors

    def encode_words(
        self,
        sentences: str | Sequence[str] | Sequence[Sequence[str]],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        states: Literal["both", "paper"] = "both",
        num_layers: int | None = None,
    ) -> Any:
        """Encode sentences: one vector per word, the mean over the word's token vectors.

        A token's vector is the output at the token and the one at the position before it, side by
        side: the first knows the word itself best, the second what its place asks for. On CoNLL-2003
        both together beat either (evaluation/README.md).

        Args:
            sentences: a text, or a sequence of texts, which are split at white space; or a sequence
                of sequences of words (one sentence in words: `[["A", "cat"]]`).
            batch_size: as in `encode`.
            show_progress_bar: as in `encode`.
            convert_to_numpy: return arrays; False: tensors on the CPU.
            device: as in `encode`.
            states: `paper` uses only the output at the position before the token, as in MAGNET's
                section 4.1 and in `encode_tokens`; half as wide.
            num_layers: as in `encode`.

        Returns:
            (words, 2 * hidden) for one text, with `paper` (words, hidden); for a sequence a list of
            them in the order given.

        Raises:
            TypeError: something is neither a string nor a sequence of strings.
            ValueError: a word is empty or all white space, `states` is unknown, or as in
                `encode_tokens`.

        Example:
            >>> model.encode_words("A cat sleeps.").shape
            (3, 1152)
        """
        single = isinstance(sentences, str)
        listed = [sentences] if single else _listed(sentences, "sentences")
        split = [_as_words(sentence, i) for i, sentence in enumerate(listed)]
        texts = [" ".join(words) for words in split]
        token_ids, offsets = self._tokenize(
            texts, truncation=False, extra_tokens=1, return_offsets=True
        )
        weights = [
            _word_weights(words, spans, i)  # (words, tokens)
            for i, (words, spans) in enumerate(zip(split, offsets, strict=True))
        ]
        both = check_states(states) == "both"
        rows = self._token_vectors(
            token_ids, batch_size, show_progress_bar, device, num_layers, both
        )
        vectors = [shares @ tokens for shares, tokens in zip(weights, rows, strict=True)]
        if convert_to_numpy:
            vectors = [row.numpy() for row in vectors]
        return vectors[0] if single else vectors

    def pool(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        num_layers: int | None = None,
    ) -> torch.Tensor:
        """Vectors of sentences that are tokenized already, prompt included.

        Puts the start token before (unless the settings leave it out) and the end token after each
        row, and pools the last layer's outputs as the settings say. This is the method that
        sentence-transformers calls on a saved folder; gradients flow through it in training.

        Args:
            input_ids: (batch, length) without start and end token; padded on either side.
            attention_mask: (batch, length) 1 for tokens, 0 for padding.
            num_layers: as in `encode`.

        Returns:
            (batch, hidden) in the model's dtype.

        Raises:
            TypeError, ValueError: `attention_mask` does not say of each token whether it is one.
        """
        return self._pool(input_ids, attention_mask, _stopping_after(num_layers))

    def _pool(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, view: View | None = None
    ) -> torch.Tensor:
        """`pool`, of what another view of the decoder returns."""
        settings = self.magnet_settings
        check_attention_mask(attention_mask, *input_ids.shape)
        lengths = attention_mask.long().sum(dim=1)  # (batch,)
        longest = int(lengths.max())
        columns = torch.arange(longest, device=input_ids.device)
        if longest:
            first = attention_mask.int().argmax(
                dim=1
            )  # (batch,) the column of the first real token
            source = (first[:, None] + columns).clamp(max=input_ids.shape[1] - 1)
            input_ids = input_ids.gather(1, source)  # (batch, longest) padded on the right
        tokens = input_ids[:, :longest].masked_fill(
            columns >= lengths[:, None], settings.end_token_id
        )
        parts = [tokens, tokens.new_full((len(tokens), 1), settings.end_token_id)]
        if settings.start_in_encode and settings.start_token_id is not None:
            parts.insert(0, tokens.new_full((len(tokens), 1), settings.start_token_id))
        padded = torch.cat(parts, dim=1)  # (batch, longest + 1 or 2)
        last = lengths + len(parts) - 2  # (batch,) the column of the end token
        columns = torch.arange(padded.shape[1], device=padded.device)
        mask = columns <= last[:, None]  # (batch, length)
        hidden = self._span_states(
            padded, torch.full_like(padded, CONTEXT), mask, view=view
        )  # (batch, length, hidden)
        return pooled(hidden, mask.to(hidden.device), settings.pooling, starts=len(parts) == 3)

    def _span_states(
        self,
        input_ids: torch.Tensor,
        span_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        view: View | None = None,
    ) -> torch.Tensor:
        """Last hidden states (batch, length, hidden) under a span map, without the output head."""
        arguments = attention_arguments(
            self.config,
            span_ids,
            query_length=input_ids.shape[1],
            dtype=self.dtype,
            attention_mask=attention_mask,
            document_ids=document_ids,
        )
        decoder = as_asked(self.base_model, arguments)
        if view is not None:
            decoder = view(decoder)
        return decoder(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **arguments
        ).last_hidden_state

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of last hidden states: the output head, and the cap that a Gemma may have on it."""
        logits = self.get_output_embeddings()(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _checked_layers(self, num_layers: int | None) -> int | None:
        """`num_layers` of `encode`, if the model has so many."""
        if num_layers is None:
            return None
        held = self.config.num_hidden_layers
        if whole_number("num_layers", num_layers) > held:
            raise ValueError(f"num_layers is {num_layers}: the model has {held} layers")
        return int(num_layers)

    def _token_vectors(
        self, token_ids, batch_size, show_progress_bar, device, num_layers, both=False
    ):
        """Outputs at the position before each token, (tokens, hidden); and with `both` at the token."""
        num_layers = self._checked_layers(num_layers)
        start = self.magnet_settings.start_token_id
        if start is None:
            raise ValueError(
                "the checkpoint has no start token, so the first token has no vector: set "
                "start_token_id in config.magnet"
            )

        def vectors_of(model, batch: list[int]) -> list[torch.Tensor]:
            inputs = _pad([[start, *token_ids[i]] for i in batch], input_device(model))
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            context = torch.full_like(ids, CONTEXT)
            hidden = model._span_states(ids, context, mask, view=_stopping_after(num_layers))
            if both:
                hidden = torch.cat([hidden[:, :-1], hidden[:, 1:]], dim=-1)
            return [hidden[row, : len(token_ids[i])].float().cpu() for row, i in enumerate(batch)]

        lengths = [len(ids) for ids in token_ids]
        rows = self._map_batches(vectors_of, lengths, batch_size, show_progress_bar, device)
        if not all(torch.isfinite(row).all() for row in rows):
            raise ValueError(
                f"the model returned NaN or infinity in {self.dtype}: load it with "
                "dtype=torch.float32 or torch.bfloat16"
            )
        return rows

    def _tokenize(self, texts, truncation: bool, extra_tokens: int, return_offsets: bool = False):
        """Token ids of texts without special tokens; too long ones raise or are cut aloud."""
        limit = self.magnet_settings.max_length - extra_tokens
        offsets: list[list[tuple[int, int]]] = []
        if return_offsets:
            token_ids, offsets = self.text_tokenizer.ids_and_offsets(texts)
        else:
            token_ids = self.text_tokenizer.ids(texts)
        too_long = [i for i, ids in enumerate(token_ids) if len(ids) > limit]
        if too_long and not truncation:
            i = too_long[0]
            raise ValueError(
                f"text {i} has {len(token_ids[i])} tokens with its prompt, the limit is {limit} "
                f"({len(too_long)} of {len(texts)} texts are over it): shorten them, or pass "
                "truncation=True to cut them"
            )
        if too_long:
            warnings.warn(
                f"{len(too_long)} of {len(texts)} texts were cut to {limit} tokens", stacklevel=3
            )
            for i in too_long:
                token_ids[i] = token_ids[i][:limit]
        longest = max(map(len, token_ids), default=0)
        self.magnet_settings.warn_beyond(longest + extra_tokens)
        return (token_ids, offsets) if return_offsets else token_ids

    def _map_batches(
        self,
        vectors_of: Callable[[Any, list[int]], list[torch.Tensor]],
        lengths: list[int],
        batch_size: int,
        show_progress_bar: bool | None,
        device,
    ) -> list[torch.Tensor]:
        """Run `vectors_of(model, indices)` over batches of similar length, on one device or many."""
        batch_size = whole_number("batch_size", batch_size)
        devices = chosen_devices(self, device)
        on_cpu = all(device.type == "cpu" for device in devices)
        batches = _batches(lengths, batch_size, CPU_BATCH_TOKENS if on_cpu else None)
        devices = devices[: max(1, len(batches))]
        models = {device: inference_model(self, device) for device in dict.fromkeys(devices)}
        if show_progress_bar is None and logging.get_verbosity() <= logging.INFO:
            show_progress_bar = True
        unasked = show_progress_bar is None  # tqdm's `disable=None`: only in a terminal
        bar = tqdm(
            total=len(lengths), desc="Encoding", unit="text", delay=BAR_DELAY if unasked else 0,
            disable=None if unasked else not show_progress_bar,
        )  # fmt: skip
        results: list[Any] = [None] * len(lengths)

        def work(model, own_batches: list[list[int]]) -> None:
            with torch.no_grad():
                for batch in own_batches:
                    for i, vector in zip(batch, vectors_of(model, batch), strict=True):
                        results[i] = vector
                    bar.update(len(batch))

        with bar:
            _together(
                partial(work, models[device], batches[i :: len(devices)])
                for i, device in enumerate(devices)
            )
        return results


def pooled(
    hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str, starts: bool
) -> torch.Tensor:
    """One vector of the states of each row.

    Args:
        hidden: (batch, length, hidden).
        attention_mask: (batch, length) 1 for tokens, 0 for padding on either side.
        pooling: one of `settings.POOLINGS`.
        starts: whether rows begin with a start token, which means leave out.

    Returns:
        (batch, hidden).
    """
    order = (
        attention_mask.long().cumsum(dim=1) * attention_mask
    )  # (batch, length) 1 at the first token
    if pooling in ("end", "first"):
        column = (order if pooling == "end" else order == 1).int().argmax(dim=1)  # (batch,)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), column]
    weights = (order - int(starts)).clamp(min=0)  # (batch, length)
    if pooling == "mean":
        weights = weights.clamp(max=1)
    weights = weights.to(hidden)
    return (weights[:, None] @ hidden)[:, 0] / weights.sum(dim=1, keepdim=True)


def _stopping_after(num_layers: int | None) -> View | None:
    return None if num_layers is None else partial(first_layers, num_layers=num_layers)


def check_states(states: str) -> str:
    """`states` of `encode_words`, if it is one."""
    if states not in ("both", "paper"):
        raise ValueError(f"states is {states!r}: give 'both' or 'paper'")
    return states


def _together(tasks: Iterable[Callable[[], None]]) -> None:
    """Run tasks in threads, each of which sees the context of this one: its adapter may be off."""
    first, *others = tasks
    if not others:
        return first()
    with ThreadPoolExecutor(1 + len(others)) as pool:
        jobs = [pool.submit(copy_context().run, task) for task in (first, *others)]
        for job in jobs:
            job.result()  # raises what its thread raised


def _batches(lengths: list[int], batch_size: int, most_tokens: int | None) -> list[list[int]]:
    """Indices in batches of similar length, the longest first: a memory error comes at once."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = not batches or len(batches[-1]) == batch_size
        if not full and most_tokens is not None:
            full = (len(batches[-1]) + 1) * lengths[batches[-1][0]] > most_tokens
        if full:
            batches.append([])
        batches[-1].append(i)
    return batches


def _as_list(sentences) -> tuple[list[str], bool]:
    single = isinstance(sentences, str)
    texts = [sentences] if single else _listed(sentences, "sentences")
    return [check_text(text, f"text {i}") for i, text in enumerate(texts)], single


def _listed(value, name: str) -> list:
    if isinstance(value, (bytes, dict)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} is {type(value).__name__}: give a string or a sequence of strings")
    return list(value)


def _as_words(sentence, index: int) -> list[str]:
    name = f"sentence {index}"
    if isinstance(sentence, str):
        return check_text(sentence, name).split()
    words = _listed(sentence, name)
    words = [check_text(word, f"word {i} of {name}") for i, word in enumerate(words)]
    for word in words:
        if not word.strip():
            raise ValueError(f"{name} holds the empty word {word!r}: leave it out")
    return words


def _word_weights(words: list[str], token_spans: list[tuple[int, int]], index: int) -> torch.Tensor:
    """(words, tokens): 1/n where the token is one of the word's n tokens.

    Words are joined by one space. A token that only covers the space between two words (byte-level
    vocabularies have some) belongs to the word that it introduces.

    Raises:
        ValueError: a word has no token; `index` is the sentence's number in the message.
    """
    begins = np.cumsum([0] + [len(word) + 1 for word in words])[: len(words)]
    ends = begins + [len(word) for word in words]
    weights = torch.zeros(len(words), len(token_spans))
    for token, (begin, end) in enumerate(token_spans):
        covered = np.flatnonzero((begins < end) & (ends > begin))
        if len(covered) == 0:
            covered = np.flatnonzero(begins >= end)[:1]
        weights[covered, token] = 1
    counts = weights.sum(dim=1, keepdim=True)  # (words, 1)
    if not counts.all():
        word = words[int(counts[:, 0].argmin())]
        raise ValueError(
            f"the word {word!r} of sentence {index} has no tokens, since the tokenizer deletes its "
            "characters: leave it out"
        )
    return weights / counts


def _pad(token_ids: list[list[int]], device) -> dict[str, torch.Tensor]:
    """Right-pad rows with zeros, which the attention mask hides."""
    longest = max(len(ids) for ids in token_ids)
    rows = [ids + [0] * (longest - len(ids)) for ids in token_ids]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids]
    shape = (len(rows), longest)
    return {
        "input_ids": torch.tensor(rows, dtype=torch.long, device=device).reshape(shape),
        "attention_mask": torch.tensor(mask, dtype=torch.long, device=device).reshape(shape),
    }


def _quantize(vectors: torch.Tensor, precision: Any) -> torch.Tensor:
    try:
        from sentence_transformers.util import quantize_embeddings
    except ImportError as error:
        raise ImportError(
            f"precision={precision!r} needs sentence-transformers: pip install sentence-transformers"
        ) from error
    return torch.from_numpy(quantize_embeddings(vectors.numpy(), precision=precision))
