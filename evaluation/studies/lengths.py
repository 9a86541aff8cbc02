"""How infilling finds a length that nobody gives: ways to do it, compared on what is missing in texts.

    python -m evaluation.studies.lengths --model FOLDER --roc dev.tsv --text wiki.parquet --limit 50 --judge BASE \\
        --encoder sentence-transformers/all-MiniLM-L6-v2 --output lengths.json

- `known`: the gap is as long as what is missing (the paper's setting). What the others are compared with.
- `guessed`: what `infill` does without a length.
- `ends`: one long gap, in which the model ends where it sees fit (`training`'s `end_of_span_fraction`).

All are greedy calls of `model.infill`. Of text five consecutive sentences of a paragraph are used. Missing
is one of the middle sentences, or a run of words that begins anywhere and has 4 to 64 tokens.
"""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np

from evaluation.common.figures import Figure, table
from evaluation.common.generating import Gap, checked, fill_gaps, parts_of, token_counts
from evaluation.common.judging import REFERENCE, judge_infillings
from evaluation.common.texts import read_stories, sentences
from evaluation.common.views import Row, perplexity, start_of, token_losses
from evaluation.common.writing import output_file, write_json
from evaluation.models import command_parser, load_language_model, load_model
from modeling_magnet.training.sources import read_rows

METHODS = ("known", "guessed", "ends")
LONGEST = 64
"""Positions of the gap of `ends`; the most that `infill` writes unasked."""

MISSING = ("sentence", "words")
"""What is missing."""

RUNS = (4, 8, 16, 32, 64)
"""Tokens of a missing run of words, about."""

SEAM = 16
"""Suffix tokens over which the seam is read."""


def passages(texts: Sequence[str]) -> list[list[str]]:
    """The first five sentences of each text that has five.

    Example:
        >>> passages(["A b. C d. E f. G h. I j. K l."])
        [['A b.', 'C d.', 'E f.', 'G h.', 'I j.']]
    """
    found = [sentences(text)[:5] for text in texts]
    return [five for five in found if len(five) == 5]


def draw(
    stories: Sequence[Sequence[str]], missing: str, limit: int, tokenizer, seed: int = 0
) -> list[Gap]:
    """Texts of five sentences, and which piece of each is missing.

    For a run of words a text is cut anew into five pieces; a word's tokens are counted with its space. Texts
    without room for the length that is drawn are left out.
    """
    generator = np.random.default_rng(seed)
    drawn = [stories[i] for i in generator.permutation(len(stories))]
    if missing == "sentence":
        gaps = generator.integers(2, 5, size=len(drawn[:limit])).tolist()
        return list(zip(drawn[:limit], gaps, strict=True))
    found: list[Gap] = []
    for story in drawn:
        if len(found) == limit:
            break
        words = " ".join(story).split()
        each = tokenizer.continued.ids([f" {word}" for word in words])
        ends = np.cumsum([len(ids) for ids in each])
        length = int(generator.choice(RUNS))
        begins = [
            i for i in range(2, len(words) - 2) if ends[i - 1] + length <= ends[len(words) - 3]
        ]
        if not begins:
            continue
        begin = int(generator.choice(begins))
        end = int(np.searchsorted(ends, ends[begin - 1] + length)) + 1
        cuts = [0, begin // 2, begin, end, (end + len(words)) // 2, len(words)]
        found.append(([" ".join(words[i:j]) for i, j in pairwise(cuts)], 3))
    return found


def write(model, pairs: Sequence[Gap], method: str, batch_size: int = 4) -> list[str]:
    """The missing sentences as a method writes them, without white space around them."""
    arguments: dict[str, Any] = {"span_lengths": LONGEST if method == "ends" else None}
    if method == "known":
        arguments["span_lengths"] = token_counts(model.text_tokenizer, pairs)
        arguments["suppress_tokens"] = [model.magnet_settings.end_token_id]
    return fill_gaps(model, pairs, batch_size=batch_size, description=method, **arguments)


def compare(
    model,
    stories: Sequence[Sequence[str]],
    gaps: Sequence[int],
    methods: Sequence[str] = METHODS,
    judge_model=None,
    judge_encoder=None,
    batch_size: int = 4,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Figure]], dict[str, list[str]]]:
    """Write what is missing by each method, and judge it by a language model, `model` by default.

    Returns:
        By method its figures: those of `judge_infillings`, and `tokens` (written, of those missing,
        in %), `length error` (tokens, absolute, a mean), `seam perplexity` (of the suffix's first tokens
        after what was written) and `seconds` a text; `reference` is the sentence that is missing. And by
        method what was written.
    """
    pairs = checked(stories, gaps)
    judge = model if judge_model is None else judge_model
    missing = [parts_of(*pair).reference for pair in pairs]
    written: dict[str, list[str]] = {}
    seconds: dict[str, Figure] = {}
    for method in methods:
        began = time.monotonic()
        written[method] = write(model, pairs, method, batch_size)
        value = (time.monotonic() - began) / len(pairs)
        seconds[method] = Figure(value, value, value, len(pairs))
    judged = judge_infillings(written, stories, gaps, judge, judge_encoder, (), batch_size, seed)
    figures: dict[str, dict[str, Figure]] = {}
    for method, texts in {**written, REFERENCE: missing}.items():
        prefix = f"{method}, "
        found = {k.removeprefix(prefix): f for k, f in judged.items() if k.startswith(prefix)}
        wrote, lacked = (
            np.array([len(ids) for ids in model.text_tokenizer.ids(column)])
            for column in (texts, missing)
        )  # (texts,) each
        found["tokens"] = Figure.of_ratio(wrote, lacked, seed).scaled(100)
        found["length error"] = Figure.of_ratio(abs(wrote - lacked), seed=seed)
        found["seam perplexity"] = _seams(judge, pairs, texts, batch_size, seed)
        if method in seconds:
            found["seconds"] = seconds[method]
        figures[method] = found
    return figures, written


def _seams(judge, pairs, texts: Sequence[str], batch_size: int, seed: int) -> Figure:
    """Perplexity of the suffix's first tokens after the prefix and what was written."""
    tokenizer = judge.text_tokenizer
    rows = []
    for pair, text in zip(pairs, texts, strict=True):
        left, _, right = parts_of(*pair)
        (before,) = tokenizer.ids([" ".join(filter(None, [left, text]))])
        (after,) = tokenizer.continued.ids([f" {right}"])
        read = len(start_of(judge) + before)
        ids = start_of(judge) + before + after[:SEAM]
        rows.append(Row(ids, None, list(range(read, len(ids)))))
    return perplexity(token_losses(judge, rows, batch_size, "Seams"), seed)


def main(command_line: list[str] | None = None) -> None:
    """Print a table a body of text, and store it with all that was written."""
    parser = command_parser()
    add = parser.add_argument
    add("--roc", help="TSV with the columns sentence1 to sentence5")
    add("--text", help="paragraphs: .txt, .jsonl or .parquet with `text`")
    add("--limit", type=int, default=50, help="texts of each")
    add("--missing", nargs="+", choices=MISSING, default=MISSING, help="what to leave out")
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add("--judge", help="language model that reads the result, if not --model")
    add("--encoder", help="sentence encoder that judges similarity")
    add("--output", type=output_file, help="JSON file to write")
    options = parser.parse_args(command_line)
    if not options.roc and not options.text:
        parser.error("nothing to infill: give --roc, --text or both")
    bodies = {"ROC Stories": read_stories(options.roc)} if options.roc else {}
    if options.text:
        rows = read_rows([options.text], ("text",), counts=Counter())
        bodies["text"] = passages([row["text"] for row in rows])
    model = load_language_model(options.model, options.start_token)
    judge = load_language_model(options.judge, options.start_token) if options.judge else None
    encoder = load_model(options.encoder) if options.encoder else None
    content = {}
    for name, kind in product(bodies, options.missing):
        pairs = draw(bodies[name], kind, options.limit, model.text_tokenizer, options.seed)
        stories, gaps = (list(part) for part in zip(*pairs, strict=True))
        figures, written = compare(
            model, stories, gaps, options.methods, judge, encoder, options.batch_size, options.seed
        )
        name = f"{name}, missing: {kind}"
        print(f"\n{name}\n\n{table(figures)}")
        content[name] = {
            "figures": {
                method: {label: figure._asdict() for label, figure in found.items()}
                for method, found in figures.items()
            },
            "texts": [
                parts_of(*pair)._asdict()
                | {"infillings": {method: texts[n] for method, texts in written.items()}}
                for n, pair in enumerate(pairs)
            ],
        }
    if options.output:
        write_json(options.output, content)


if __name__ == "__main__":
    main()
