"""Repetition in greedy continuations: Rep-Sen and Rep-n (MAGNET, section 4.4, Figures 5 and 6).

    python -m evaluation.repetition --model FOLDER --text wiki.valid.tokens --limit 50

Equation 6 of the paper, "as done by prior works" (Welleck et al. 2019, Xu et al. 2022):

    Rep-Sen = 1.0 - |unique sentences| / |sentences|        Rep-n = 1.0 - |unique n-grams| / |n-grams|

"We create a prefix-dataset from the test sets of Wikitext-103 and ROC Stories, consisting of 5-word
and single-sentence prefixes, respectively. The model is then tasked with autoregressively generating
text based on these prefixes", greedily. The paper leaves open what follows; here:

- Each figure is of one continuation, without its prompt, and the mean over continuations is reported.
- A sentence ends at `.`, `!` or `?`, with closing quotes and brackets, before white space, and at a
  line break. A stop after a single capital letter or a title (`J.`, `Mr.`) ends none. What stands
  after the last end is a sentence too. Sentences are the same if their words are, case included.
- Words are what white space separates, so that models of different vocabularies compare.
- A text without sentences, or with fewer than n words, repeats nothing: 0.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import evaluate
import numpy as np
import torch
from tqdm.auto import tqdm

from .figures import Figure, table

SENTENCE_END = re.compile(
    r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St)\.)(?<!\bMrs\.)"  # an initial or a title goes on
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”\u2019)\]]))\s+"  # \u2019: a closing single quote
    r"|\s*\n\s*"
)
PROMPT_WORDS = 5


class Repetition(evaluate.Metric):
    """Rep-Sen and Rep-n of texts, with 95 % bootstrap intervals over the texts.

    Example:
        >>> Repetition().compute(predictions=["It rains. It rains."], n=2)["rep_sen"].value
        0.5
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of sentences (rep_sen) and of n-grams (rep_n) of a text that repeat "
            "an earlier one of it: 1 - unique / all, the mean over texts.",
            citation="Khosla et al., MAGNET: Augmenting Generative Decoders with Representation Learning and "
            "Infilling Capabilities, section 4.4, equation 6",
            inputs_description="predictions: texts. n: words of an n-gram. seed: of the bootstrap.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, n: int = 4, seed: int = 0):
        figures = {
            "rep_sen": [rep_sen(text) for text in predictions],
            f"rep_{n}": [rep_n(text, n) for text in predictions],
        }
        return {name: Figure.of_ratio(values, seed=seed) for name, values in figures.items()}


def rep_sen(text: str) -> float:
    """The share of a text's sentences that repeat an earlier one, 0 to 1."""
    return _repeated(sentences(text))


def rep_n(text: str, n: int = 4) -> float:
    """The share of a text's word n-grams that repeat an earlier one, 0 to 1.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: give the words of an n-gram, 1 or more")
    words = text.split()
    return _repeated([tuple(words[i : i + n]) for i in range(len(words) - n + 1)])


def sentences(text: str) -> list[str]:
    """The sentences of a text, by the rule of this module, with single spaces between words.

    Example:
        >>> sentences("Dr. J. Roe left. “Why?” Nobody\\nknew")
        ['Dr. J. Roe left.', '“Why?”', 'Nobody', 'knew']
    """
    pieces = (" ".join(piece.split()) for piece in SENTENCE_END.split(text))
    return [piece for piece in pieces if piece]


def _repeated(items: Sequence) -> float:
    return 1.0 - len(set(items)) / len(items) if items else 0.0


class Continuation(NamedTuple):
    """A prompt, what the model wrote after it, and what stands there in the text."""

    prompt: str
    written: str
    original: str


@torch.no_grad()
def continuations(
    model,
    texts: Sequence[str],
    prompt_tokens: int | Sequence[int],
    new_tokens: int = 128,
    batch_size: int = 16,
    progress: bool = True,
) -> list[Continuation]:
    """Continue the beginnings of texts greedily.

    Args:
        model: with a tokenizer and `magnet_settings`, whose start token begins each prompt.
        texts: running text.
        prompt_tokens: how many tokens of a text are its prompt, for all or one each.
        new_tokens: the most to write, and to take of the original. A continuation ends earlier at an
            end token, or at the start token: what stands after that is another document.
        batch_size: prompts in a batch; those of a batch are of similar length.
        progress: show a bar.

    Returns:
        In the order of `texts`.

    Raises:
        ValueError: numbers of texts and prompts differ, or a prompt has no token.
    """
    counts = [prompt_tokens] * len(texts) if isinstance(prompt_tokens, int) else list(prompt_tokens)
    if len(counts) != len(texts):
        raise ValueError(f"got {len(texts)} texts and {len(counts)} prompt lengths: give one each")
    tokenizer, settings = model.text_tokenizer, model.magnet_settings
    start = [] if settings.start_token_id is None else [settings.start_token_id]
    token_ids = tokenizer.ids(list(texts))
    prompts = [start + ids[:count] for ids, count in zip(token_ids, counts, strict=True)]
    for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if count < 0 or not prompt:
            raise ValueError(f"text {i} has a prompt of {count} tokens: give 1 or more")
    ends = _ids(model.generation_config.eos_token_id) | {settings.end_token_id, *start}
    written: list[list[int]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda i: len(prompts[i]))
    for first in tqdm(range(0, len(order), batch_size), desc="Continuing", disable=not progress):
        batch = order[first : first + batch_size]
        longest = len(prompts[batch[-1]])
        padding = [longest - len(prompts[i]) for i in batch]
        ids = [
            [settings.end_token_id] * n + prompts[i] for n, i in zip(padding, batch, strict=True)
        ]
        output = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(
                [[0] * n + [1] * (longest - n) for n in padding], device=model.device
            ),
            max_new_tokens=new_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=settings.end_token_id,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # a checkpoint's generation config may hold others
            no_repeat_ngram_size=0,
        )
        for i, row in zip(batch, output[:, longest:].tolist(), strict=True):
            stop = next((j for j, token in enumerate(row) if token in ends), len(row))
            written[i] = row[:stop]

    made = []
    for prompt, row, ids, count in zip(prompts, written, token_ids, counts, strict=True):
        later = tokenizer.continued if count else tokenizer
        original = later.decode(ids[count : count + new_tokens])
        made.append(Continuation(tokenizer.decode(prompt), later.decode(row), original))
    return made


def prompt_lengths(
    texts: Sequence[str], tokenizer, characters: Sequence[int] | None = None
) -> list[int]:
    """How many tokens of each text its prompt has.

    Args:
        texts: running text.
        tokenizer: a model's `text_tokenizer`.
        characters: how many characters of each text are its prompt. None: those of its first 5
            words, as the paper has it for WikiText-103.
    """
    if characters is None:
        words = [list(re.finditer(r"\S+", text))[:PROMPT_WORDS] for text in texts]
        characters = [found[-1].end() if found else 0 for found in words]
    _, offsets = tokenizer.ids_and_offsets(list(texts))
    return [
        sum(end <= limit for _, end in ends)
        for ends, limit in zip(offsets, characters, strict=True)
    ]


def _ids(value: int | list[int] | None) -> set[int]:
    if value is None:
        return set()
    return {value} if isinstance(value, int) else set(value)


def measure_repetition(
    model,
    path: str | Path,
    limit: int = 50,
    new_tokens: int = 128,
    n: int = 4,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Figure]:
    """Repetition in what a model writes after the beginnings of texts, and in the texts themselves.

    Args:
        model: as in `continuations`.
        path: a .tsv of stories (prompt: the first sentence), or lines as of WikiText (prompt: 5
            words), of which those are taken that are as long as what is written.
        limit: texts to continue.
        new_tokens, batch_size, progress: as in `continuations`.
        n: words of an n-gram.
        seed: of the draw of texts, and of the bootstrap.

    Returns:
        `Rep-Sen` and `Rep-n` of the continuations in percent, and of the true ones, such as
        `Rep-Sen of the true text`.

    Raises:
        ValueError: the file cannot be read, or no text is long enough.
    """
    # Here, not above: `evaluate.load` copies this file without the modules that these import.
    from .inputs import read_paragraphs, read_stories

    generator = np.random.default_rng(seed)
    if str(path).endswith(".tsv"):
        stories = read_stories(path)
        stories = [stories[i] for i in generator.permutation(len(stories))[:limit]]
        texts = [" ".join(story) for story in stories]
        lengths = prompt_lengths(texts, model.text_tokenizer, [len(story[0]) for story in stories])
    else:
        texts = read_paragraphs(path)
        sizes = map(len, model.text_tokenizer.ids(texts))
        least = new_tokens + 4 * PROMPT_WORDS  # repetition grows with length
        texts = [text for text, size in zip(texts, sizes, strict=True) if size >= least]
        if not texts:
            raise ValueError(f"{path} has no paragraph of {least} tokens or more")
        texts = [texts[i] for i in generator.permutation(len(texts))[:limit]]
        lengths = prompt_lengths(texts, model.text_tokenizer)
    made = continuations(model, texts, lengths, new_tokens, batch_size, progress)
    figures = {}
    for suffix, column in (("", 1), (" of the true text", 2)):
        found = Repetition().compute(predictions=[pair[column] for pair in made], n=n, seed=seed)
        figures[f"Rep-Sen{suffix}"] = found["rep_sen"].scaled(100)
        figures[f"Rep-{n}{suffix}"] = found[f"rep_{n}"].scaled(100)
    return figures


def main(command_line: list[str] | None = None) -> None:
    """Print Rep-Sen and Rep-n of a model's continuations and of the true ones."""
    from .inputs import add_model_arguments, load_model  # as above

    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument(
        "--text",
        required=True,
        help="a .tsv of stories (prompt: the first sentence) or WikiText lines (prompt: 5 words)",
    )
    parser.add_argument("--limit", type=int, default=50, help="texts to continue")
    parser.add_argument("--new-tokens", type=int, default=128, help="the most to write")
    parser.add_argument("--n", type=int, default=4, help="words of an n-gram")
    options = parser.parse_args(command_line)
    figures = measure_repetition(
        load_model(options.model, options.start_token), options.text, options.limit, options.new_tokens, options.n,
        options.batch_size, options.seed,
    )  # fmt: skip
    print(f"Greedy continuations of up to {options.new_tokens} tokens, in %\n")
    print(table({options.model: figures}))


if __name__ == "__main__":
    main()
