"""Writes the missing middle of a text from both sides (MAGNET, sections 3.2.3 and 4.3).

No key or value of the context depends on the span, so infilling is one bidirectional prefill followed
by ordinary cached decoding with `generate`. The steps: tokenize the parts of a text, choose the length
of each gap (`lengths`), which fixes all positions (`layout`), write the spans (`decoding`), score them
on request (`scoring`), and decode them to text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from .checks import as_list, whole_number
from .decoding import Blank, DecodingMixin, Span, SpanStreamer
from .devices import inference_model
from .layout import Layout
from .lengths import LengthsMixin, usual_length
from .scoring import Infilling, ScoringMixin, SpanScore
from .tokenizing import TextTokenizer, check_text

DEFAULT_MAX_NEW_TOKENS = 64
"""The most tokens that are written if neither a length nor `max_new_tokens` is given."""

BLANK_MARK = "___"
"""What marks a blank in a whole text."""


class InfillingMixin(LengthsMixin, DecodingMixin, ScoringMixin):
    """`infill`, `infill_blanks` and `score` for a causal language model with a span map."""

    def infill(
        self,
        prefix: str | Sequence[str],
        suffix: str | Sequence[str] | None = None,
        span_length: int | Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        streamer: BaseStreamer | None = None,
        return_scores: bool = False,
        **generate_arguments,
    ):
        """Write the missing middle between a prefix and a suffix, or the blanks `___` of a text.

        Args:
            prefix: the text before the gap, or a sequence of them. May be empty. Spaces at its end
                are left to the span, since a language model writes a space with the word after it.
                Without a suffix: a whole text that has `___` for each blank, or a sequence of them.
            suffix: the text after the gap, as many as prefixes. May be empty. Starts with its own
                space where there is one.
            span_length: the length of the gap in tokens, one for all texts or one per text. The span
                is at most as long and ends earlier only at an end token (the paper's setting). None:
                the gap is somewhat longer than a sentence of the text around it, and the span is cut
                where it leads best into the suffix (see `lengths`). A streamer and
                `return_dict_in_generate` show it uncut. If no text follows the gap, it has
                `max_new_tokens` positions.
            max_new_tokens: the most that may be written. Default: `span_length`, or 64.
            streamer: gets the span's tokens as they are generated, without the prompt.
            return_scores: return an `Infilling` instead of each text, with its log-probabilities and
                the reason why it ended. This reads the text once more.
            generate_arguments: everything else that `generate` takes. `stop_strings` need no
                `tokenizer` here.

        Returns:
            The span's text, or a list of them for a sequence of prefixes. For a text with `___`, the
            list of what fills its blanks, as from `infill_blanks`. With `num_return_sequences=n` each
            is a list of n. With `return_dict_in_generate=True`, the output of `generate`, with
            `sequences` cut to the span and the texts as `texts`.

        Raises:
            TypeError: a text is not a string, or an argument is one that `infill` sets itself.
            ValueError: numbers of prefixes, suffixes and lengths differ, a length is below 1,
                context and gap exceed the checkpoint's `max_length`, the prefix is empty and the
                checkpoint has no start token, an argument cannot work with a span map, or there is
                neither a suffix nor `___`.

        Example:
            >>> model.infill("The capital of France is", " and it lies on the Seine.", span_length=1)
            ' Paris'
            >>> model.infill("The capital of France is ___ and it lies on the Seine.", span_length=1)
            ['Paris']
        """
        if suffix is None:
            texts, single = _split_at_blanks(prefix), isinstance(prefix, str)
            lengths = _gap_lengths(span_length, texts, single)
        else:
            prefixes, suffixes = _text_list(prefix, "prefix"), _text_list(suffix, "suffix")
            if len(prefixes) != len(suffixes):
                raise ValueError(
                    f"got {len(prefixes)} prefixes and {len(suffixes)} suffixes: give as many of both"
                )
            texts = [list(pair) for pair in zip(prefixes, suffixes, strict=True)]
            single = isinstance(prefix, str) and isinstance(suffix, str)
            each = _checked_lengths(span_length, len(texts), "pairs of prefix and suffix")
            lengths = [[length] for length in each]
        results = self._infill(
            texts, lengths, max_new_tokens, streamer, return_scores, generate_arguments
        )
        if not isinstance(results, list):
            return results
        if suffix is not None:
            results = [blanks[0] for blanks in results]
        return results[0] if single else results

    def infill_blanks(
        self,
        parts: Sequence[str] | Sequence[Sequence[str]],
        span_length: int | Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        return_scores: bool = False,
        **generate_arguments,
    ):
        """Write every missing span of a text that has several.

        Each span sees all the context and only itself, so the blanks are decoded together, as rows
        of one batch.

        Args:
            parts: the text around the blanks, in order: n + 1 strings for n blanks. The first and
                the last may be empty. A sequence of such sequences for several texts.
            span_length: token positions of each blank: one for all, or one per blank (for one text only).
                None: as in `infill`.
            max_new_tokens, return_scores, generate_arguments: as in `infill`.

        Returns:
            The spans' texts, in order, as a list; for several texts a list of such lists. Each is a
            list of n with `num_return_sequences=n`.

        Raises:
            TypeError, ValueError: as in `infill`; or two blanks have no text between them.

        Example:
            >>> len(model.infill_blanks(["The", " sat on the", "."], span_length=1))
            2
        """
        texts, single = _list_of_parts(parts)
        lengths = _gap_lengths(span_length, texts, single)
        results = self._infill(
            texts, lengths, max_new_tokens, None, return_scores, generate_arguments
        )
        return results[0] if single and isinstance(results, list) else results

    def score(
        self, prefix: str | Sequence[str], middle: str | Sequence[str], suffix: str | Sequence[str]
    ) -> SpanScore | list[SpanScore]:
        """How likely the model finds a middle between a prefix and a suffix.

        Args:
            prefix, suffix: as in `infill`.
            middle: the text between them, as many as prefixes. The gap is exactly as long. It starts with
                its own space, if any; spaces at the prefix's end are moved to it.

        Returns:
            The `SpanScore`: sum, mean and each token's natural log-probability; for a sequence of
            prefixes a list of them.

        Raises:
            TypeError, ValueError: as in `infill`, or a middle is empty.

        Example:
            >>> given = "The capital of France is", " and it lies on the Seine."
            >>> model.score(given[0], " Paris", given[1]).sum > model.score(given[0], " Rome", given[1]).sum
            True
        """
        columns = {"prefix": prefix, "middle": middle, "suffix": suffix}
        single = all(isinstance(column, str) for column in columns.values())
        prefixes, middles, suffixes = (_text_list(column, name) for name, column in columns.items())
        if not len(prefixes) == len(middles) == len(suffixes):
            raise ValueError(
                f"got {len(prefixes)} prefixes, {len(middles)} middles and {len(suffixes)} suffixes"
            )
        spans = []
        for t, (before, text, after) in enumerate(zip(prefixes, middles, suffixes, strict=True)):
            text = check_text(text, f"middle {t}")
            if not text:
                raise ValueError(f"middle {t} is '': give a text that is not empty")
            parts, spaces = self._tokenized(t, [before, after])
            tokenizer = self._span_tokenizer(begins_text=not before.strip(" "))
            (span,) = tokenizer.ids([spaces[0] * " " + text])
            layout = Layout(parts, [len(span)])
            self._check_length(t, layout)
            spans.append((layout, 0, span))
        if spans:
            self.magnet_settings.warn_beyond(max(layout.length for layout, _, _ in spans))
        model = inference_model(self)
        with torch.no_grad():
            scores = model._scores(spans)
        return scores[0] if single else scores

    def _infill(self, texts, lengths, max_new_tokens, streamer, return_scores, arguments):
        """The spans of texts given in parts: result[text][blank] is a text, or a list of n."""
        arguments, max_new_tokens = self._generate_arguments(arguments, max_new_tokens)
        if not texts:
            return []
        if streamer is not None:
            arguments["streamer"] = SpanStreamer(streamer)
        whole_output = arguments["return_dict_in_generate"]
        model = inference_model(self)
        with torch.no_grad():
            blanks = self._blanks(texts, lengths, max_new_tokens or DEFAULT_MAX_NEW_TOKENS)
            gaps = sorted({blank.gap for blank in blanks})
            if whole_output and len(gaps) > 1:
                raise ValueError(
                    f"return_dict_in_generate needs one span_length for all, got {gaps}"
                )
            output = model._write(blanks, max_new_tokens, arguments)
            if streamer is None and not whole_output:  # which show what was written
                model._cut_guesses(blanks)
            written: list[list[Any]] = [
                [self._span_text(blank, span) for span in blank.spans] for blank in blanks
            ]
            if return_scores:
                written = model._with_scores(blanks, written)
        samples = (self._generation_value("num_return_sequences", arguments) or 1) > 1
        results: list[list[Any]] = [[None] * (len(text) - 1) for text in texts]
        for blank, found in zip(blanks, written, strict=True):
            results[blank.text_index][blank.blank_index] = found if samples else found[0]
        if whole_output:
            output.texts = results
            return output
        return results

    def _blanks(self, texts, lengths, most: int) -> list[Blank]:
        """Tokenize texts, give each gap its length, and lay the texts out."""
        blanks = []
        for t, (parts, wanted) in enumerate(zip(texts, lengths, strict=True)):
            token_ids, spaces = self._tokenized(t, parts)
            usual = usual_length(parts, sum(map(len, token_ids)), most)
            guessed = [
                length is None and bool(after)
                for length, after in zip(wanted, token_ids[1:], strict=True)
            ]
            gaps = [
                usual if guess else length or most
                for length, guess in zip(wanted, guessed, strict=True)
            ]
            layout = Layout(token_ids, gaps)
            self._check_length(t, layout)
            blanks += [
                Blank(
                    t,
                    b,
                    layout,
                    follows_space=spaces[b] > 0,
                    begins_text=b == 0 and not parts[b].strip(" "),
                    is_guess=guess,
                )
                for b, guess in enumerate(guessed)
            ]
        self.magnet_settings.warn_beyond(max(blank.layout.length for blank in blanks))
        return blanks

    def _tokenized(self, t: int, parts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Token ids of a text's parts, and the spaces at the end of each, which are left to the spans."""
        parts = [check_text(part, f"part {b} of text {t}") for b, part in enumerate(parts)]
        stripped = [*(part.rstrip(" ") for part in parts[:-1]), parts[-1]]
        spaces = [len(part) - len(kept) for part, kept in zip(parts, stripped, strict=True)]
        tokenizer = self.text_tokenizer
        token_ids = tokenizer.ids(stripped[:1]) + tokenizer.continued.ids(stripped[1:])
        start = self.magnet_settings.start_token_id
        token_ids[0] = ([] if start is None else [start]) + token_ids[0]
        for b, ids in enumerate(token_ids[:-1]):
            if not ids and b == 0:
                raise ValueError(
                    f"text {t} begins with the gap and the checkpoint has no start token: set "
                    "start_token_id in config.magnet, or give a prefix"
                )
            if not ids:
                raise ValueError(f"text {t} has no text between blanks {b - 1} and {b}: join them")
        return token_ids, spaces

    def _check_length(self, t: int, layout: Layout) -> None:
        limit = self.magnet_settings.max_length
        if layout.length > limit:
            raise ValueError(
                f"text {t} has {layout.length} positions ({sum(layout.gaps)} in gaps), but the limit "
                f"is {limit}: shorten the context or the gap"
            )

    def _cut_guesses(self, blanks: list[Blank]) -> None:
        """Cut each span in a gap of guessed length where it leads best into the suffix."""
        for blank in blanks:
            before, after = (blank.layout.parts[blank.blank_index + n] for n in (0, 1))
            for i, (token_ids, ended) in enumerate(blank.spans):
                if blank.is_guess and ended == "length":
                    kept = self._best_cut(before, token_ids, after)
                    if kept < len(token_ids):
                        blank.spans[i] = Span(token_ids[:kept], "seam")

    def _span_text(self, blank: Blank, span: Span) -> str:
        text = self._span_tokenizer(blank.begins_text).decode(span.token_ids)
        return text.lstrip(" ") if blank.follows_space else text

    def _span_tokenizer(self, begins_text: bool) -> TextTokenizer:
        """The tokenizer for a gap's text. Only at the beginning of a text may it add a space."""
        return self.text_tokenizer if begins_text else self.text_tokenizer.continued

    def _with_scores(self, blanks: list[Blank], texts: list[list[str]]) -> list[list[Infilling]]:
        """Each span's text with its score and the reason why it ended."""
        scores = iter(
            self._scores(
                [(b.layout, b.blank_index, span.token_ids) for b in blanks for span in b.spans]
            )
        )
        return [
            [
                Infilling(text, next(scores), span.ended)
                for text, span in zip(found, blank.spans, strict=True)
            ]
            for blank, found in zip(blanks, texts, strict=True)
        ]


SEQUENCES = (Sequence, np.ndarray)
"""Types that count as a list of lengths."""


def _text_list(texts, name: str) -> list:
    return [texts] if isinstance(texts, str) else as_list(texts, name)


def _split_at_blanks(texts) -> list[list[str]]:
    """Split texts at their blanks, into the parts around them."""
    listed = _text_list(texts, "prefix")
    parts = [check_text(text, f"text {t}").split(BLANK_MARK) for t, text in enumerate(listed)]
    for t, text in enumerate(parts):
        if len(text) == 1:
            raise ValueError(
                f"text {t} has no {BLANK_MARK} and there is no suffix: mark what is missing by {BLANK_MARK}, or "
                "give the text after it"
            )
    return parts


def _list_of_parts(parts) -> tuple[list[Sequence[str]], bool]:
    """`parts` as a list of texts in parts, and whether it was one text."""
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise TypeError(
            f"parts is {type(parts).__name__}: give the strings around the blanks, or a sequence of such "
            "sequences"
        )
    single = len(parts) > 0 and all(isinstance(part, str) for part in parts)
    texts = [parts] if single else list(parts)
    for text in texts:
        if isinstance(text, str) or not isinstance(text, Sequence) or len(text) < 2:
            raise ValueError(f"parts holds {text!r}: n blanks need n + 1 strings around them")
    return texts, single


def _gap_lengths(span_length, texts, single: bool) -> list[list[int | None]]:
    """The lengths of each text's gaps; None: guess them."""
    if isinstance(span_length, SEQUENCES) and not single:
        raise ValueError("span_length is a sequence: for several texts give one number or None")
    return [_checked_lengths(span_length, len(text) - 1, "blanks") for text in texts]


def _checked_lengths(span_length, count: int, what: str) -> list[int | None]:
    lengths = list(span_length) if isinstance(span_length, SEQUENCES) else [span_length] * count
    if len(lengths) != count:
        raise ValueError(f"span_length has {len(lengths)} entries, but there are {count} {what}")
    if None in lengths and any(length is not None for length in lengths):
        raise ValueError(f"span_length is {lengths}: give all lengths or none")
    return [length if length is None else whole_number("span_length", length) for length in lengths]
