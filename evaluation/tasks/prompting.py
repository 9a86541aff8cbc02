"""Infilling as a base model can do it, by prompts (MAGNET, section 4.3, Tables 5, 9, 10, Appendix B).

    python -m evaluation.tasks.prompting --model FOLDER --roc dev.tsv --limit 100 --output infillings.json

One of the middle sentences of a five-sentence story is missing. `METHODS` are the ways to write it:

- `both_sides`: `model.infill` with a gap as long as the missing sentence, what MAGNET is for.
- `guessed`: the same without a length, as a user calls it.
- `left_only`: plain continuation of the sentences before it.
- `blank`, `contextual`, `prefix_suffix`, `line_by_line`: the zero-shot prompts of Appendix B.1.
- `five_shot`: the line-by-line prompt after five solved ones (Appendix B.2).

All are greedy. An instruct model too reads the prompts as plain text, without its chat template, as
in the paper. The prompts are the paper's, word for word, except that no full stop is put after
`<text>`, `<past-context>`, `<future-context>` and `Middle:`: the sentences have their own.

A gap is filled as `infill` does it, up to its last token. What is written after the left context or
a prompt is cut to its first sentence, by the rule of `evaluation.common.texts`; after a prompt, quotes
around the whole of it fall away.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.common.figures import Figure, table
from evaluation.common.generating import (
    Gap,
    checked,
    continuations,
    fill_gaps,
    id_set,
    parts_of,
    token_counts,
)
from evaluation.common.judging import JUDGEMENTS, REFERENCE, judge_infillings
from evaluation.common.texts import read_stories, sentences
from evaluation.common.writing import output_file, write_json
from evaluation.models import command_parser, load_language_model, load_model

LINE_BY_LINE = (
    "You have a five-sentence story with some missing text.\n"
    "Here is the context for each line, with the missing line indicated:\n{lines}\n"
    "Please generate the missing line of the story. Please generate only the missing line and "
    "nothing else.\nThe missing line is: Line {gap}:"
)
PROMPTS = {
    "left_only": "{left}",
    "blank": "Generate the missing line represented by _ in the given text: {text}\n"
    "Generate a single sentence.\nThe missing line is:",
    "contextual": 'Fill in the missing sentence between "{left}" and "{right}". '
    "Generate only one sentence. The missing sentence is:",
    "prefix_suffix": "Given the prefix and the suffix, generate the middle sentence.\n"
    "Prefix: {left}\nSuffix: {right}\nGenerate only one sentence.\nMiddle:",
    "line_by_line": LINE_BY_LINE,
    "five_shot": LINE_BY_LINE,
}
INFILLED = ("both_sides", "guessed")
METHODS = (*INFILLED, *PROMPTS)
SHOTS = 5
NEW_TOKENS = 40
"""The most that is written after a prompt: about twice the longest sentence of 1000 ROC Stories."""

IN_QUOTES = re.compile(r"[\"“]([^\"“”]*)[\"”]*\.?")


def prompt_of(method: str, story: Sequence[str], gap: int, examples: Sequence[Gap] = ()) -> str:
    r"""The text that the model continues; `five_shot` shows the examples solved.

    Example:
        >>> prompt_of("contextual", ["It rains.", "It pours.", "A.", "B.", "C."], 2)[:63]
        'Fill in the missing sentence between "It rains." and "A. B. C."'
    """
    left, _, right = parts_of(story, gap)
    lines = [*story[: gap - 1], "[Missing Line]", *story[gap:]]
    prompt = PROMPTS[method].format(
        left=left,
        right=right,
        text=" ".join(filter(None, [left, "_", right])),
        lines="\n".join(f"Line {n}: {line}" for n, line in enumerate(lines, 1)),
        gap=gap,
    )
    if method != "five_shot":
        return prompt
    solved = [f"{prompt_of('line_by_line', told, k)} {told[k - 1]}" for told, k in examples]
    return "\n\n".join([*solved, prompt])


def write_infillings(
    model,
    stories: Sequence[Sequence[str]],
    gaps: Sequence[int],
    methods: Sequence[str] = METHODS,
    examples: Sequence[Gap] = (),
    new_tokens: int = NEW_TOKENS,
    batch_size: int = 8,
) -> dict[str, list[str]]:
    """Write the missing sentence of every story by every method, greedily.

    Args:
        model: a MAGNET model with its tokenizer; its start token begins every prompt.
        gaps: the number of the missing sentence of each, 1 to 5.
        examples: five solved stories, for `five_shot`.
        new_tokens: the most to write after a prompt; `both_sides` fills its gap instead.

    Returns:
        By method, the sentences in the order of `stories`, without white space around them.

    Raises:
        ValueError: before anything is written: a method is unknown, `five_shot` has not five
            examples, stories and gaps do not fit, a first sentence is missing and there is no start
            token, or a prompt and what is written exceed the checkpoint's `max_length`.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"got the methods {unknown}: there are {list(METHODS)}")
    if "five_shot" in methods and len(examples) != SHOTS:
        raise ValueError(f"five_shot got {len(examples)} examples: give {SHOTS} solved stories")
    pairs = checked(stories, gaps)
    checked([story for story, _ in examples], [gap for _, gap in examples])
    prompts = {
        method: [prompt_of(method, *pair, examples) for pair in pairs]
        for method in methods
        if method not in INFILLED
    }
    sizes = [n for name, texts in prompts.items() for n in _sizes(model, name, texts, new_tokens)]
    written: dict[str, list[str]] = {method: [] for method in methods}
    ends = id_set(model.generation_config.eos_token_id) | {model.magnet_settings.end_token_id}
    ends |= id_set(model.magnet_settings.start_token_id)
    for method in [method for method in INFILLED if method in methods]:
        lengths = token_counts(model.text_tokenizer, pairs) if method == "both_sides" else None
        written[method] = fill_gaps(
            model, pairs, lengths, batch_size, method, eos_token_id=sorted(ends)
        )
    if prompts:
        texts = [text for group in prompts.values() for text in group]
        made = continuations(model, texts, sizes, new_tokens, batch_size)
        for n, method in enumerate(prompts):
            group = [each.written for each in made[n * len(pairs) : (n + 1) * len(pairs)]]
            written[method] = [_first_sentence(text, method) for text in group]
    return written


def _sizes(model, method: str, prompts: list[str], new_tokens: int) -> list[int]:
    """The tokens of each prompt, without the start token."""
    limit, start = model.magnet_settings.max_length, model.magnet_settings.start_token_id
    sizes = [len(ids) for ids in model.text_tokenizer.ids(prompts)]
    positions = max(sizes, default=0) + (start is not None) + new_tokens
    if positions > limit:
        raise ValueError(
            f"{method} needs {positions} positions ({new_tokens} of them to be written), the limit is "
            f"{limit}: give shorter stories, or other methods"
        )
    if start is None and 0 in sizes:
        raise ValueError(
            f"{method} has nothing before a missing first sentence: set start_token_id in "
            "config.magnet, or ask for another sentence"
        )
    return sizes


def _first_sentence(text: str, method: str) -> str:
    first = next(iter(sentences(text)), "")
    quoted = IN_QUOTES.fullmatch(first)
    return quoted[1] if quoted and method != "left_only" else first


def measure_prompting(
    model,
    path: str | Path,
    limit: int | None = None,
    seed: int = 0,
    judge_model=None,
    judge_encoder=None,
    batch_size: int = 8,
    methods: Sequence[str] = METHODS,
) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Write and judge infillings of middle sentences of stories that the seed draws.

    Args:
        limit: stories to use at most. None: all, but for the five of `five_shot`, which are drawn
            first. A story has the same gap whatever the limit.
        judge_model: as in `judge_infillings`; models compare under the same one. None: `model`.
        judge_encoder, batch_size, methods: as in the two functions.

    Returns:
        The figures of `judge_infillings`, and the infillings: of each story its number in the file
        (`story`, from 1), the number of the missing sentence (`gap`), the text before and after it
        (`left`, `right`), itself (`reference`), and by method what was written (`infillings`).

    Raises:
        ValueError: as in the two functions, or there are fewer than six stories.
    """
    stories = read_stories(path)
    if len(stories) <= SHOTS or (limit is not None and limit < 1):
        raise ValueError(
            f"{path} has {len(stories)} stories, the limit is {limit}: {SHOTS} are the solved "
            "examples, give at least one more to measure on"
        )
    generator = np.random.default_rng(seed)
    gaps = generator.integers(2, 5, size=len(stories)).tolist()
    shots, drawn = np.split(generator.permutation(len(stories)), [SHOTS])
    examples = [(stories[i], gaps[i]) for i in shots]
    chosen = drawn[:limit].tolist()
    told, missing = [stories[i] for i in chosen], [gaps[i] for i in chosen]
    written = write_infillings(model, told, missing, methods, examples, batch_size=batch_size)
    judge = model if judge_model is None else judge_model
    figures = judge_infillings(
        written, told, missing, judge, judge_encoder, examples, batch_size, seed
    )
    infillings = [
        {"story": i + 1, "gap": gaps[i]}
        | parts_of(stories[i], gaps[i])._asdict()
        | {"infillings": {method: texts[n] for method, texts in written.items()}}
        for n, i in enumerate(chosen)
    ]
    return figures, infillings


def as_table(figures: Mapping[str, Figure]) -> str:
    """Figures named `METHOD, JUDGEMENT` as a table in Markdown, a method a row."""
    columns: dict[str, dict[str, Figure]] = {name: {} for name in JUDGEMENTS}
    for name, figure in figures.items():
        method, _, judgement = name.partition(", ")
        columns[judgement][method] = figure
    return table({name: column for name, column in columns.items() if column}, digits=1)


def main(command_line: list[str] | None = None) -> None:
    """Print how a model's infillings are judged, and store them."""
    parser = command_parser()
    add = parser.add_argument
    add("--roc", required=True, help="TSV with the columns sentence1 to sentence5")
    add("--limit", type=int, default=100, help="stories to use")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="to measure")
    add("--judge", help="language model that judges the stories, if not --model")
    add("--encoder", help="sentence encoder that judges similarity")
    add("--show", type=int, default=0, help="stories to print with infillings")
    add("--output", type=output_file, help="JSON file to write, for evaluation.studies.ratings")
    options = parser.parse_args(command_line)
    figures, infillings = measure_prompting(
        load_language_model(options.model, options.start_token),
        options.roc,
        options.limit,
        options.seed,
        load_language_model(options.judge, options.start_token) if options.judge else None,
        load_model(options.encoder) if options.encoder else None,
        options.batch_size,
        options.methods,
    )
    print("A missing middle sentence, in % but for the perplexity (95 % bootstrap interval)\n")
    print(as_table(figures))
    for found in infillings[: options.show]:
        print(f"\nStory {found['story']}: {found['left']} [...] {found['right']}")
        for name, text in {REFERENCE: found["reference"], **found["infillings"]}.items():
            print(f"- {name}: {text}")
    if options.output:
        content = {
            "settings": {name: str(value) for name, value in vars(options).items()},
            "figures": {name: figure._asdict() for name, figure in figures.items()},
            "details": {"infillings": infillings},
        }
        write_json(options.output, content)


if __name__ == "__main__":
    main()
