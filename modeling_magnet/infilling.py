"""Writing the missing middle from both sides (MAGNET, sections 3.2.3 and 4.3).

Every context key and value is independent of the span, so infilling is one bidirectional prefill and
then ordinary cached decoding by `generate`. The cache holds [suffix, prefix]: position ids put the
prefix at 0, leave a gap for the span and put the suffix behind it, and the prefix's last token is the
last column, whose output predicts the span's first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from .checks import whole_number
from .compat import CACHE, CACHE_NAMES
from .devices import as_asked, inference_model, input_device
from .encoding import EncodingMixin, _listed
from .masking import CONTEXT, attention_arguments, sliding_window
from .tokenizing import check_text

CANDIDATE_LENGTHS = (4, 8, 12, 16, 24, 32, 48, 64)
"""Gaps tried where no length is given."""

SEAM_LENGTH = 16
"""Suffix tokens that the ranking of candidates reads on into."""

SET_BY_INFILL = (
    "inputs",
    "input_ids",
    "attention_mask",
    "position_ids",
    "span_ids",
    *CACHE_NAMES,
)


class InfillingMixin(EncodingMixin):
    """`infill` and `infill_blanks` for a causal language model with a span map."""

    def infill(
        self,
        prefix: str | Sequence[str],
        suffix: str | Sequence[str],
        span_length: int | Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        streamer: BaseStreamer | None = None,
        **generate_arguments,
    ):
        """Write the missing middle between a prefix and a suffix.

        Args:
            prefix: the text before the gap, or a sequence of them. May be empty. Spaces at its end
                are left to the span, since a language model writes a space with the word behind it.
            suffix: the text behind the gap, as many as prefixes. May be empty. Starts with its own
                space where there is one.
            span_length: how many token positions the gap has, for all or one each; the span is up to
                as long and ends earlier only at an end token (the paper's setting). None: gaps of
                several lengths are decoded together, and the span is taken whose end and the first tokens
                of the suffix behind it the model, read left to right, finds most likely. Behind an
                empty suffix one gap of `max_new_tokens` is enough.
            max_new_tokens: the most that may be written. Default: `span_length`, or 64.
            streamer: gets the span's tokens as they come (not the prompt). Needs `span_length`.
            generate_arguments: everything else that `generate` takes.

        Returns:
            The span's text; for a sequence of prefixes a list of them. With
            `num_return_sequences=n` each is a list of n. With `return_dict_in_generate=True` what
            `generate` returns, its `sequences` cut to the span, with the texts as `texts`.

        Raises:
            TypeError: a text is no string, or an argument is one that `infill` sets itself.
            ValueError: numbers of prefixes, suffixes and lengths differ, a length is below 1,
                context and gap exceed the checkpoint's `max_length`, the prefix is empty and the
                checkpoint has no start token, or an argument cannot work with a span map.

        Example:
            >>> model.infill("The capital of France is", " and it lies on the Seine.", span_length=1)
            ' Paris'
        """
        single = isinstance(prefix, str) and isinstance(suffix, str)
        prefixes = [prefix] if isinstance(prefix, str) else _listed(prefix, "prefix")
        suffixes = [suffix] if isinstance(suffix, str) else _listed(suffix, "suffix")
        if len(prefixes) != len(suffixes):
            raise ValueError(f"got {len(prefixes)} prefixes and {len(suffixes)} suffixes")
        lengths = _each(span_length, len(prefixes), "pairs of prefix and suffix")
        results = self._infill(
            [[p, s] for p, s in zip(prefixes, suffixes, strict=True)],
            [[length] for length in lengths],
            max_new_tokens,
            streamer,
            generate_arguments,
        )
        if not isinstance(results, list):
            return results
        results = [blanks[0] for blanks in results]
        return results[0] if single else results

    def infill_blanks(
        self,
        parts: Sequence[str] | Sequence[Sequence[str]],
        span_length: int | Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        **generate_arguments,
    ):
        """Write every missing span of a text that has several.

        Each span sees all the context and only itself, so the blanks are decoded together, as rows
        of one batch.

        Args:
            parts: the text around the blanks, in order: n + 1 strings for n blanks. The first and
                the last may be empty. A sequence of such sequences for several texts.
            span_length: token positions of each blank: one for all, or one a blank (one text only).
                None: as in `infill`; while one blank's length is tried, the others have the middle
                one of the lengths tried.
            max_new_tokens, generate_arguments: as in `infill`.

        Returns:
            The spans' texts, in order, as a list; for several texts a list of such lists. Each is a
            list of n with `num_return_sequences=n`.

        Raises:
            TypeError, ValueError: as in `infill`; or two blanks have no text between them.

        Example:
            >>> len(model.infill_blanks(["The", " sat on the", "."], span_length=1))
            2
        """
        texts, single = _as_texts(parts)
        if single:
            lengths = [_each(span_length, len(texts[0]) - 1, "blanks")]
        elif isinstance(span_length, LISTS):
            raise ValueError("span_length is a sequence: for several texts give one number or None")
        else:
            lengths = [_each(span_length, len(text) - 1, "blanks") for text in texts]
        results = self._infill(texts, lengths, max_new_tokens, None, generate_arguments)
        if not isinstance(results, list):
            return results
        return results[0] if single else results

    def _infill(self, texts, lengths, max_new_tokens, streamer, arguments):
        """The spans of texts given as parts: result[text][blank] is a text, or a list of n."""
        arguments, max_new_tokens = self._generate_arguments(arguments, max_new_tokens)
        if not texts:
            return []
        rows = self._rows(texts, lengths, max_new_tokens)
        gaps = sorted({row.gap for row in rows})
        ranked = lengths[0][0] is None
        whole_output = arguments["return_dict_in_generate"]
        if ranked and (streamer is not None or whole_output):
            raise ValueError(
                "streamer and return_dict_in_generate show one decoding: give span_length"
            )
        if whole_output and len(gaps) > 1:
            raise ValueError(f"return_dict_in_generate needs one span_length for all, got {gaps}")
        if streamer is not None:
            arguments["streamer"] = _SpanStreamer(streamer)
        model = inference_model(self)
        with torch.no_grad():
            if self._share_a_decoding(rows, arguments):
                output = model._decode(rows, max_new_tokens, arguments)
            else:
                for gap in gaps:
                    group = [row for row in rows if row.gap == gap]
                    output = model._decode(group, max_new_tokens, arguments)
            if ranked:
                rows = model._best(rows)
        returned = self._generation_value("num_return_sequences", arguments) or 1
        results: list[list[Any]] = [[None] * (len(text) - 1) for text in texts]
        for row in rows:
            written = [self._span_text(row, span) for span in row.spans[:returned]]
            results[row.text][row.blank] = written if returned > 1 else written[0]
        if whole_output:
            output.texts = results
            return output
        return results

    def _rows(self, texts, lengths, max_new_tokens) -> list["_Row"]:
        settings = self.magnet_settings
        start = [] if settings.start_token_id is None else [settings.start_token_id]
        limit = max_new_tokens or max(CANDIDATE_LENGTHS)
        candidates = [n for n in CANDIDATE_LENGTHS if n < limit] + [limit]
        usual = candidates[len(candidates) // 2]
        tokenizer = self.text_tokenizer
        rows, longest = [], 0
        for t, (parts, wanted) in enumerate(zip(texts, lengths, strict=True)):
            parts = [check_text(part, f"part {b} of text {t}") for b, part in enumerate(parts)]
            before = [part.rstrip(" ") for part in parts[:-1]]
            token_ids = tokenizer.ids(before[:1])
            token_ids += tokenizer.continued.ids([*before[1:], parts[-1]])
            token_ids[0] = start + token_ids[0]
            for b, ids in enumerate(token_ids[:-1]):
                if not ids and b == 0:
                    raise ValueError(
                        f"text {t} begins with the gap and the checkpoint has no start token: set "
                        "start_token_id in config.magnet, or give a prefix"
                    )
                if not ids:
                    raise ValueError(
                        f"text {t} has no text between blanks {b - 1} and {b}: join them"
                    )
            for b, length in enumerate(wanted):
                unknown = candidates if token_ids[b + 1] else [limit]  # nothing behind to fit
                for gap in unknown if length is None else [length]:
                    gaps = [usual if n is None else n for n in wanted]
                    gaps[b] = gap
                    positions = sum(map(len, token_ids)) + sum(gaps)
                    if positions > settings.max_length:
                        raise ValueError(
                            f"text {t} has {positions} positions ({sum(gaps)} of them gap), the "
                            f"limit is {settings.max_length}: shorten the context or the gap"
                        )
                    longest = max(longest, positions)
                    space = len(parts[b]) > len(before[b])
                    begins = b == 0 and not before[b]
                    rows.append(_Row(t, b, gap, gaps, token_ids, space, begins))
        settings.warn_beyond(longest)
        return rows

    def _share_a_decoding(self, rows: list["_Row"], arguments: dict) -> bool:
        """Whether rows of several gaps can be rows of one batch."""
        if self._generation_value("num_beams", arguments) not in (None, 1):
            return False  # a beam's score ends where its gap ends
        window = sliding_window(self.config)
        columns = max(row.context for row in rows) + max(row.gap for row in rows)
        return window is None or columns <= window  # each alone fits, within `max_length`

    def _decode(self, rows: list["_Row"], max_new_tokens: int | None, arguments: dict):
        """Decode all rows in one call of `generate`; fills `row.spans`."""
        inputs = self._context_inputs([row.layout() for row in rows])
        length = inputs["input_ids"].shape[1]
        longest = max(row.gap for row in rows)
        copies = max(
            self._generation_value(name, arguments) or 1
            for name in ("num_beams", "num_return_sequences")
        )
        if self._share_contexts(rows, copies, arguments):
            inputs[CACHE] = self._read_contexts(rows, copies)
        output: Any = self.generate(
            **inputs, max_new_tokens=min(longest, max_new_tokens or longest), **arguments
        )
        whole = not isinstance(output, torch.Tensor)
        written = (output.sequences if whole else output)[:, length:]
        if whole:
            output.sequences = written
        returned = len(written) // len(rows)
        ends = self._end_tokens(arguments)
        for row, spans in zip(rows, written.split(returned), strict=True):
            for span in spans[:, : row.gap].tolist():
                end = next((i for i, token in enumerate(span) if token in ends), len(span))
                while not ends and end and span[end - 1] == arguments["pad_token_id"]:
                    end -= 1  # nothing but a stopping criterion ends a span here
                row.spans.append(span[:end])
        return output

    def _context_inputs(self, layouts: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
        """Token ids and positions as left-padded tensors (rows, length), all of them context."""
        length = max(len(ids) for ids, _ in layouts)

        def left_padded(values: list[list[int]]) -> torch.Tensor:
            rows = [[0] * (length - len(row)) + row for row in values]
            return torch.tensor(rows, device=input_device(self))

        return {
            "input_ids": left_padded([ids for ids, _ in layouts]),
            "position_ids": left_padded([positions for _, positions in layouts]),
            "attention_mask": left_padded([[1] * len(ids) for ids, _ in layouts]),
            "span_ids": torch.full((len(layouts), length), CONTEXT, device=input_device(self)),
        }

    def _share_contexts(self, rows: list["_Row"], copies: int, arguments: dict) -> bool:
        """Whether some rows have the same context, and the cache is one that can be made here."""
        longest = max(row.context for row in rows)
        if len({row.shared for row in rows}) == len(rows) * copies or longest == 1:
            return False  # nothing is read twice, or nothing before the last token
        return (
            sliding_window(self.config) is None
            and self._generation_value("cache_implementation", arguments) is None
            and self._generation_value("use_cache", arguments) is not False
        )

    def _read_contexts(self, rows: list["_Row"], copies: int) -> DynamicCache:
        """The keys and values of all but the last token of each row, each context read once.

        The blanks of a text differ in the order of the columns alone, so their caches are gathered
        from one. `generate` reads the last token itself, whose output it needs.
        """
        contexts = {row.shared: row for row in rows}
        inputs = self._context_inputs([row.in_order() for row in contexts.values()])
        cache = DynamicCache(config=self.config)
        arguments = attention_arguments(
            self.config,
            inputs["span_ids"],
            query_length=inputs["input_ids"].shape[1],
            dtype=self.dtype,
            attention_mask=inputs["attention_mask"],
        )
        as_asked(self.base_model, arguments)(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            use_cache=True,
            **{CACHE: cache},
            **arguments,
        )
        own = list(contexts)
        columns = torch.zeros(
            len(rows),
            max(row.context for row in rows) - 1,
            dtype=torch.long,
            device=input_device(self),
        )  # (rows, length - 1)
        for n, row in enumerate(rows):
            pad = inputs["input_ids"].shape[1] - row.context
            order = torch.tensor(row.order[:-1], device=input_device(self)) + pad
            columns[n, columns.shape[1] - len(order) :] = order
        sources = torch.tensor([own.index(row.shared) for row in rows], device=input_device(self))
        columns, sources = (t.repeat_interleave(copies, dim=0) for t in (columns, sources))
        for layer in cache.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)  # (contexts, heads, columns, size)
                index = sources[:, None].to(states.device), columns.to(states.device)
                gathered = states.transpose(1, 2)[index]  # (rows, length - 1, heads, size)
                setattr(layer, name, gathered.transpose(1, 2).contiguous())
        return cache

    def _best(self, rows: list["_Row"]) -> list["_Row"]:
        """One row for each blank, its spans the candidates of all gaps, the likeliest first.

        A candidate's score is the mean log-probability of its last token and the suffix's first ones,
        read left to right by the same model. Without its last token, half sentences win that end in
        a full stop; with more of its tokens, repetitions do, which a model finds likely. One that
        ended before its first token is the last choice.
        """
        texts, firsts = [], []
        owners = [(row, span) for row in rows for span in row.spans]
        for row, span in owners:
            before = row.parts[row.blank]
            texts.append(before + span + row.parts[row.blank + 1][:SEAM_LENGTH])
            firsts.append(len(before) + max(len(span) - 1, 0))
        scores = self._mean_log_probability(texts, firsts)
        best: dict[tuple[int, int], list[tuple[float, _Row, list[int]]]] = {}
        for score, (row, span) in zip(scores, owners, strict=True):
            best.setdefault((row.text, row.blank), []).append((score, row, span))
        chosen = []
        for candidates in best.values():
            candidates.sort(key=lambda candidate: (not candidate[2], -candidate[0]))
            row = candidates[0][1]
            row.spans = [span for _, _, span in candidates]
            chosen.append(row)
        return chosen

    def _mean_log_probability(self, texts: list[list[int]], firsts: list[int]) -> list[float]:
        """Of each text's tokens from `firsts` on, under plain causal attention."""
        device = input_device(self)
        longest = max(map(len, texts))
        rows = [text + [0] * (longest - len(text)) for text in texts]
        mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
        hidden = self.base_model(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            use_cache=False,
        ).last_hidden_state  # (texts, longest, hidden)
        scores = []
        for text, first, states in zip(texts, firsts, hidden, strict=True):
            logits = self._logits(states[first - 1 : len(text) - 1]).float()
            targets = torch.tensor(text[first:], device=logits.device)
            loss = torch.nn.functional.cross_entropy(logits, targets) if len(targets) else torch.inf
            scores.append(-float(loss))
        return scores

    def _span_text(self, row: "_Row", span: list[int]) -> str:
        tokenizer = self.text_tokenizer
        text = (tokenizer if row.begins_text else tokenizer.continued).decode(span)
        return text.lstrip(" ") if row.follows_space else text

    def _generation_value(self, name: str, arguments: dict):
        """The value that `generate` will use of an option."""
        if arguments.get(name) is not None:
            return arguments[name]
        config = arguments.get("generation_config") or self.generation_config
        value = getattr(config, name, None)
        return getattr(self.generation_config, name, None) if value is None else value

    def _end_tokens(self, arguments: dict) -> list[int]:
        """The tokens of the vocabulary at which `generate` ends a row."""
        ends = self._generation_value("eos_token_id", arguments)
        ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
        return [token for token in ends if 0 <= token < self.config.vocab_size]

    def _generate_arguments(
        self, arguments: dict, max_new_tokens: int | None
    ) -> tuple[dict, int | None]:
        """Check what the caller has for `generate`, and set what infilling decides."""
        arguments = dict(arguments)
        for name in SET_BY_INFILL:
            if name in arguments:
                raise TypeError(f"{name} is set by infill itself: leave it out")
        for name in ("max_length", "min_length"):
            if arguments.get(name) is not None:
                raise ValueError(
                    f"{name} counts the context too: give span_length, max_new_tokens or min_new_tokens"
                )
        config = arguments.get("generation_config")
        if config is not None and not isinstance(config, GenerationConfig):
            raise TypeError(
                f"generation_config is {type(config).__name__}: give a GenerationConfig of transformers"
            )
        if self._generation_value("prefill_chunk_size", arguments):
            raise ValueError(
                "prefill_chunk_size reads the prompt in chunks, but infilling needs every context token "
                "to see all others: leave it out, or set it to None in model.generation_config"
            )
        if max_new_tokens is None and config is not None:
            max_new_tokens = config.max_new_tokens
        if max_new_tokens is not None:
            max_new_tokens = whole_number("max_new_tokens", max_new_tokens)
        # Only the caller's word counts: a checkpoint's default would change what infill returns.
        whole = arguments.get(
            "return_dict_in_generate", getattr(config, "return_dict_in_generate", 0)
        )
        arguments["return_dict_in_generate"] = bool(whole)
        # A row that a stopping criterion ends is padded: with an end token, where the span is cut.
        # Without any end token `generate` would write on in it, so it gets one that cannot come.
        ends = self._end_tokens(arguments)
        arguments["pad_token_id"] = ends[0] if ends else self.magnet_settings.end_token_id
        if not ends:
            arguments["eos_token_id"] = self.config.vocab_size
        return arguments, max_new_tokens


@dataclass
class _Row:
    """One blank of one text with one gap length: a row of the batch that is decoded."""

    text: int
    blank: int
    gap: int
    gaps: list[int]  # of all the text's blanks
    parts: list[list[int]]  # token ids around the blanks, in order
    follows_space: bool  # the part before ended in a space, which the span then writes
    begins_text: bool  # no text stands before the blank
    spans: list[list[int]] = field(default_factory=list)

    @property
    def context(self) -> int:
        """How many tokens stand around the blanks."""
        return sum(map(len, self.parts))

    @property
    def shared(self) -> tuple[int, ...]:
        """What rows of the same context, at the same positions, have in common."""
        return (self.text, *self.gaps)

    @property
    def order(self) -> list[int]:
        """The context's tokens in cache order: what is behind the blank, then what is before."""
        before = sum(map(len, self.parts[: self.blank + 1]))
        return [*range(before, self.context), *range(before)]

    def in_order(self) -> tuple[list[int], list[int]]:
        """Token ids and positions of the context in the text's order."""
        token_ids: list[int] = []
        positions: list[int] = []
        start = 0
        for part, gap in zip(self.parts, [*self.gaps, 0], strict=True):
            token_ids += part
            positions += range(start, start + len(part))
            start += len(part) + gap
        return token_ids, positions

    def layout(self) -> tuple[list[int], list[int]]:
        """The same in cache order."""
        token_ids, positions = self.in_order()
        return [token_ids[i] for i in self.order], [positions[i] for i in self.order]


class _SpanStreamer(BaseStreamer):
    """Hands a streamer the written tokens; in place of the prompt it gets an empty one.

    `generate` puts the prompt into a streamer first, and streamers with `skip_prompt` count on it.
    """

    def __init__(self, streamer: BaseStreamer):
        self.streamer = streamer
        self.prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
            value = value[:, :0]
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()


LISTS = (Sequence, np.ndarray)
"""What a list of lengths may be."""


def _as_texts(parts) -> tuple[list[Sequence[str]], bool]:
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


def _each(span_length, count: int, what: str) -> list[int | None]:
    lengths = list(span_length) if isinstance(span_length, LISTS) else [span_length] * count
    if len(lengths) != count:
        raise ValueError(f"span_length has {len(lengths)} entries, there are {count} {what}")
    if None in lengths and any(length is not None for length in lengths):
        raise ValueError(f"span_length is {lengths}: give all lengths or none")
    return [length if length is None else whole_number("span_length", length) for length in lengths]
