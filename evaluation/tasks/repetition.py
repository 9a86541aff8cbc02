"""Repetition in greedy continuations: Rep-Sen and Rep-n (MAGNET, section 4.4, Figures 5 and 6).

    python -m evaluation.tasks.repetition --model FOLDER --text wiki.valid.tokens --limit 50

Equation 6 of the paper, "as done by prior works" (Welleck et al. 2019, Xu et al. 2022):

    Rep-Sen = 1.0 - |unique sentences| / |sentences|        Rep-n = 1.0 - |unique n-grams| / |n-grams|

"We create a prefix-dataset from the test sets of Wikitext-103 and ROC Stories, consisting of 5-word
and single-sentence prefixes, respectively. The model is then tasked with autoregressively generating
text based on these prefixes", greedily. The paper leaves open what follows; here:

- Each figure is of one continuation, without its prompt, and the mean over continuations is reported.
- Sentences are those of `evaluation.common.texts.sentences`, and the same if their words are, case
  included.
- Words are what white space separates, so that models of different vocabularies compare.
- A text without sentences, or with fewer than n words, repeats nothing: 0.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets
import evaluate
import numpy as np

from evaluation.common.figures import Figure, table
from evaluation.common.generating import PROMPT_WORDS, continuations, prompt_lengths
from evaluation.common.texts import read_paragraphs, read_stories, sentences
from evaluation.models import command_parser, load_language_model


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


def _repeated(items: Sequence) -> float:
    return 1.0 - len(set(items)) / len(items) if items else 0.0


def measure_repetition(
    model,
    path: str | Path,
    limit: int = 50,
    new_tokens: int = 128,
    n: int = 4,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Figure]:
    """Repetition in what a model writes after the beginnings of texts, and in the texts themselves.

    The file is a .tsv of stories (prompt: the first sentence), or lines as of WikiText (prompt: 5 words), of
    which those are taken that are as long as what is written.

    Returns:
        `Rep-Sen` and `Rep-n` of the continuations in percent, and of the true ones, such as
        `Rep-Sen of the true text`.

    Raises:
        ValueError: the file cannot be read, or no text is long enough.
    """
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
    made = continuations(model, texts, lengths, new_tokens, batch_size)
    figures = {}
    for suffix, column in (("", 1), (" of the true text", 2)):
        found = Repetition().compute(predictions=[pair[column] for pair in made], n=n, seed=seed)
        figures[f"Rep-Sen{suffix}"] = found["rep_sen"].scaled(100)
        figures[f"Rep-{n}{suffix}"] = found[f"rep_{n}"].scaled(100)
    return figures


def main(command_line: list[str] | None = None) -> None:
    """Print Rep-Sen and Rep-n of a model's continuations and of the true ones."""
    parser = command_parser()
    add = parser.add_argument
    kinds = "a .tsv of stories (prompt: the first sentence) or WikiText lines (prompt: 5 words)"
    add("--text", required=True, help=kinds)
    add("--limit", type=int, default=50, help="texts to continue")
    add("--new-tokens", type=int, default=128, help="the most to write")
    add("--n", type=int, default=4, help="words of an n-gram")
    options = parser.parse_args(command_line)
    model, size = load_language_model(options.model, options.start_token), options.new_tokens
    figures = measure_repetition(
        model, options.text, options.limit, size, options.n, options.batch_size, options.seed
    )
    print(f"Greedy continuations of up to {size} tokens, in %\n")
    print(table({options.model: figures}))


if __name__ == "__main__":
    main()
