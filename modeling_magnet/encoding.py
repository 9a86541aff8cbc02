"""Encodes sentences, tokens and words as vectors (MAGNET, sections 3.2.2 and 4.1)."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from .batching import map_batches, right_padded
from .checks import as_list, whole_number
from .devices import input_device
from .masking import CONTEXT
from .pooling import PoolingMixin, stopping_after
from .tokenizing import check_text

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


class EncodingMixin(PoolingMixin):
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
            batch_size: the most sentences in a forward pass. A batch has texts of similar length. On a
                CPU, batches of long texts are smaller.
            show_progress_bar: None shows it in a terminal if the call takes longer than two seconds, and
                always if transformers' log level is `info` or below.
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
            num_layers: stop after this many layers. The final norm and the pooling stay, and the later
                layers do not run. Like `truncate_dim`, this needs a model that was trained for it
                (docs/how-to/matryoshka.md). None: all.

        Returns:
            (hidden,) for one text, (texts, hidden) in the order given for a sequence; float32.

        Raises:
            TypeError: `sentences` holds something other than strings, or a number is not whole.
            ValueError: a text is too long, a prompt name is unknown, a choice or a number is not one of
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
        texts, single = checked_texts(sentences)
        prompt_text = self.magnet_settings.prompt_text(prompt_name, prompt)
        token_ids = self._tokenize(
            [prompt_text + text for text in texts],
            truncation,
            extra_tokens=self.magnet_settings.special_tokens,
        )

        def vectors_of(model, batch: list[int]) -> list[torch.Tensor]:
            inputs = right_padded([token_ids[i] for i in batch], input_device(model))
            return list(model.pool(**inputs, num_layers=num_layers).float().cpu())

        rows = map_batches(
            self, vectors_of, [len(ids) for ids in token_ids], batch_size, show_progress_bar, device
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
        (MAGNET, section 4.1). The start token comes before the first. No prompt is added.

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
        texts, single = checked_texts(sentences)
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
        listed = [sentences] if single else as_list(sentences, "sentences")
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

    def _token_vectors(
        self, token_ids, batch_size, show_progress_bar, device, num_layers=None, both=False
    ):
        """Outputs at the position before each token, (tokens, hidden), and with `both` also at the token."""
        num_layers = self._checked_layers(num_layers)
        start = self.magnet_settings.start_token_id
        if start is None:
            raise ValueError(
                "the checkpoint has no start token, so the first token has no vector: set "
                "start_token_id in config.magnet"
            )

        def vectors_of(model, batch: list[int]) -> list[torch.Tensor]:
            inputs = right_padded([[start, *token_ids[i]] for i in batch], input_device(model))
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            context = torch.full_like(ids, CONTEXT)
            hidden = model._span_states(ids, context, mask, view=stopping_after(num_layers))
            if both:
                hidden = torch.cat([hidden[:, :-1], hidden[:, 1:]], dim=-1)
            return [hidden[row, : len(token_ids[i])].float().cpu() for row, i in enumerate(batch)]

        lengths = [len(ids) for ids in token_ids]
        rows = map_batches(self, vectors_of, lengths, batch_size, show_progress_bar, device)
        if not all(torch.isfinite(row).all() for row in rows):
            raise ValueError(
                f"the model returned NaN or infinity in {self.dtype}: load it with "
                "dtype=torch.float32 or torch.bfloat16"
            )
        return rows

    def _tokenize(self, texts, truncation: bool, extra_tokens: int, return_offsets: bool = False):
        """Token ids of texts without special tokens. Texts that are too long raise, or are cut with a warning."""
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


def check_states(states: str) -> str:
    """Check `states` of `encode_words`."""
    if states not in ("both", "paper"):
        raise ValueError(f"states is {states!r}: give 'both' or 'paper'")
    return states


def checked_texts(sentences) -> tuple[list[str], bool]:
    """`sentences` of `encode` as a list, and whether it was one text."""
    single = isinstance(sentences, str)
    texts = [sentences] if single else as_list(sentences, "sentences")
    return [check_text(text, f"text {i}") for i, text in enumerate(texts)], single


def _as_words(sentence, index: int) -> list[str]:
    name = f"sentence {index}"
    if isinstance(sentence, str):
        return check_text(sentence, name).split()
    words = as_list(sentence, name)
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


def _quantize(vectors: torch.Tensor, precision: Any) -> torch.Tensor:
    try:
        from sentence_transformers.util import quantize_embeddings
    except ImportError as error:
        raise ImportError(
            f"precision={precision!r} needs sentence-transformers: pip install sentence-transformers"
        ) from error
    return torch.from_numpy(quantize_embeddings(vectors.numpy(), precision=precision))
