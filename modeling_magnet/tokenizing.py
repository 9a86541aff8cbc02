"""Turns a user's text into token ids and back. Every text that a model reads goes through here.

A plain call of a tokenizer does three things that must not happen to a user's text:

- It reads `<|im_end|>` in a sentence as the control token.
- Like Llama 2's, it may put a space before a text that continues another.
- It cuts the text if another thread has just asked the same tokenizer to truncate.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 4096
"""How many texts are tokenized at a time. What the tokenizer returns for each needs memory."""

SURROGATE = re.compile("[\ud800-\udfff]")

REPLACEMENT = "\ufffd"
"""What replaces bytes that are not a character."""

MAX_CHARACTER_TOKENS = 4
"""The most bytes, and so the most tokens, of one character."""

NO_SPACE = {"prepend_scheme": "never", "add_prefix_space": False, "strip_left": False, "start": 0}
"""Settings with which the parts of a tokenizer neither add nor remove a space at a text's beginning."""


def check_text(text: Any, name: str) -> str:
    """Check that something is a text that can be tokenized.

    Args:
        text: what was got.
        name: what the message calls it, such as `text 3`.

    Returns:
        The text, as a plain `str`.

    Raises:
        TypeError: it is not a string.
        ValueError: it holds half a surrogate pair, which is not a character.

    Example:
        >>> check_text("A cat.", "text 0")
        'A cat.'
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} is {type(text).__name__} ({text!r:.80}): give a string")
    half = SURROGATE.search(text)
    if half:
        raise ValueError(
            f"{name} holds half a surrogate pair, {half[0]!r} at character {half.start()}, which is not "
            "valid Unicode: decode it again, or call text.encode('utf-8', 'replace').decode()"
        )
    return str.__str__(text)  # str(text) drops null characters at the end of numpy's strings


class TextTokenizer:
    """Tokenizes what users write, on a view of a tokenizer that nobody else changes.

    Control tokens that are spelled out in a text are split like any other text. An added token that
    is not marked as special is ordinary vocabulary, and stays one token.

    Args:
        tokenizer: of the model. It is never changed. Tokens that are added to it later need a new
            view.
        split_special_tokens: False reads a control token's spelling as that token.
        continued: tokenize and decode text that continues other text, without the space that
            tokenizers like Llama 2's add before a text and remove from it.
        vocab_size: how many tokens the model has. Texts with other tokens are refused. None: any.

    Example:
        >>> tokenizer = TextTokenizer(model.tokenizer)
        >>> tokenizer.ids(["A cat<|im_end|>"])
        [[49, 2644, 44, 108, 306, 79, 486, 108, 46]]
        >>> tokenizer.continued.decode([2644])
        ' cat'
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        split_special_tokens: bool = True,
        continued: bool = False,
        vocab_size: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.split_special_tokens = split_special_tokens
        self.vocab_size = vocab_size
        self._is_continued = continued

    @property
    def continued(self) -> "TextTokenizer":
        """The same tokenizer for text that continues other text."""
        return TextTokenizer(self.tokenizer, self.split_special_tokens, True, self.vocab_size)

    def ids(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
        """Token ids of texts.

        Args:
            texts: a sequence of strings.
            add_special_tokens: put the tokenizer's special tokens around each.

        Raises:
            TypeError, ValueError: of `check_text`; the message has the text's number.
            ValueError: a text has a token that the model does not know.
        """
        if not self.tokenizer.is_fast:
            return self._check_vocabulary(self._slow_ids(texts, add_special_tokens))
        return self._check_vocabulary(
            [one.ids for one in self._encodings(texts, add_special_tokens)]
        )

    def ids_and_offsets(
        self, texts: Sequence[str], add_special_tokens: bool = False
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Token ids of texts, and the characters (first, end) that each token covers.

        Args:
            texts, add_special_tokens: as in `ids`.

        Raises:
            TypeError, ValueError: as in `ids`, or the tokenizer is a slow one, which knows no offsets.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not tell which characters a token covers: set "
                "model.tokenizer to a fast tokenizer (one with a tokenizer.json)"
            )
        token_ids, offsets = [], []
        for encoding in self._encodings(texts, add_special_tokens):
            token_ids.append(encoding.ids)
            offsets.append(encoding.offsets)
        return self._check_vocabulary(token_ids), offsets

    def _check_vocabulary(self, token_ids: list[list[int]]) -> list[list[int]]:
        """Raise unless the model has an embedding for every token."""
        for i, ids in enumerate(token_ids):
            if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
                token = self.tokenizer.convert_ids_to_tokens(max(ids))
                raise ValueError(
                    f"text {i} has the token {token!r}, number {max(ids)}, but the model has "
                    f"{self.vocab_size} embeddings: the tokenizer is another model's, or tokens were added "
                    "without model.resize_token_embeddings(len(tokenizer))"
                )
        return token_ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. An incomplete character becomes `\ufffd` and changes nothing before it.

        Args:
            token_ids: of one text.
            skip_special_tokens: leave out control tokens.
        """
        ids = [int(token_id) for token_id in token_ids]
        view: Any = self._view if self.tokenizer.is_fast else self.tokenizer
        whole = view.decode(ids, skip_special_tokens=skip_special_tokens)
        if not whole.endswith(REPLACEMENT):
            return whole
        # Llama 2's decoder drops a whole run of byte tokens if the last of them are not a character.
        for cut in range(1, MAX_CHARACTER_TOKENS):
            text = view.decode(ids[:-cut], skip_special_tokens=skip_special_tokens)
            if not text.endswith(REPLACEMENT):
                return whole if whole.startswith(text) else text + REPLACEMENT
        return whole

    def _encodings(self, texts: Sequence[str], add_special_tokens: bool) -> Iterator[Encoding]:
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            chunk = list(texts[first : first + TEXTS_AT_ONCE])
            try:
                encodings = self._view.encode_batch(chunk, add_special_tokens=add_special_tokens)
            except TypeError:  # whose message tells neither which text nor why
                for i, text in enumerate(chunk, start=first):
                    check_text(text, f"text {i}")
                raise
            for text, encoding in zip(chunk, encodings, strict=True):
                leaks = self.split_special_tokens and self._control_tokens(encoding)
                yield self._encode_in_pieces(text, add_special_tokens) if leaks else encoding

    def _control_tokens(self, encoding: Encoding) -> list[int]:
        """Where control tokens that were read from the text itself begin in it.

        A Unigram or word-level model has control tokens among its words, and finds them there.
        """
        if self._control_ids.isdisjoint(encoding.ids):
            return []
        tokens = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        return [
            begin
            for token_id, (begin, end), added in tokens
            if token_id in self._control_ids and not added and end - begin > 1
        ]

    def _encode_in_pieces(self, text: str, add_special_tokens: bool) -> Encoding:
        """Tokenize a text in pieces, with a border after the first character of each control token."""
        pieces, later = [text], self.continued._view
        while True:
            encodings = self._view.encode_batch(pieces[:1], add_special_tokens=False)
            encodings += later.encode_batch(pieces[1:], add_special_tokens=False)
            found = [self._control_tokens(encoding) for encoding in encodings]
            if not any(found):
                break
            pieces = [
                piece[begin:end]
                for piece, firsts in zip(pieces, found, strict=True)
                for begin, end in pairwise([0, *(first + 1 for first in firsts), None])
            ]
        whole = Encoding.merge(encodings, growing_offsets=True)
        return self._view.post_process(whole) if add_special_tokens else whole

    def _slow_ids(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        plain = [check_text(text, f"text {i}") for i, text in enumerate(texts)]
        if not plain:
            return []
        encoded = self.tokenizer(
            plain,
            add_special_tokens=add_special_tokens,
            split_special_tokens=self.split_special_tokens,
            verbose=False,
        )
        return encoded["input_ids"]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """The special tokens, except the one for unknown words."""
        added = self._backend.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        return frozenset(special - {self.tokenizer.unk_token_id})

    @property
    def _backend(self) -> Tokenizer:
        tokenizer: Any = self.tokenizer
        return tokenizer.backend_tokenizer

    @cached_property
    def _view(self) -> Tokenizer:
        """A tokenizer with the same model and tokens, which shares only the vocabulary."""
        backend = self._backend
        parts = {
            name: _state_of(getattr(backend, name))
            for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        }
        if self._is_continued:
            for name in ("normalizer", "pre_tokenizer", "decoder"):
                parts[name] = _without_space(parts[name])
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        view = Tokenizer.from_str(json.dumps({**parts, "model": empty, "added_tokens": []}))
        view.model = backend.model
        added = backend.get_added_tokens_decoder()
        view.add_tokens([added[token_id] for token_id in sorted(added)])
        view.encode_special_tokens = self.split_special_tokens
        return view


def _state_of(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as `tokenizer.json` has it."""
    return None if part is None else json.loads(part.__getstate__())


def _without_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part without the space that it adds before a text, or removes from it."""
    if part is None or part["type"] == "Prepend":
        return None
    part = part | {name: value for name, value in NO_SPACE.items() if name in part}
    for name in ("normalizers", "pretokenizers", "decoders"):
        if name in part:
            kept = map(_without_space, part[name])
            part[name] = [each for each in kept if each is not None]
    return part
