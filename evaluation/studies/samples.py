"""A missing sentence of each story as `model.infill` writes it, all shown and none picked, in Markdown.

    python -m evaluation.studies.samples --model checkpoints/magnet-smollm2-135m --stories examples/data/stories.tsv \\
        --output infillings.md

The call is `model.infill(prefix, suffix)`, greedy, without a length; which sentence is missing is
drawn by the seed, from the second to the fourth.
"""

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from evaluation.common.generating import GREEDY, parts_of
from evaluation.common.texts import read_stories
from evaluation.common.writing import output_file, write_text
from evaluation.models import command_parser, load_language_model


def samples(model, stories: Sequence[Sequence[str]], seed: int = 0) -> str:
    """A Markdown list of the stories: what was written in bold, what is missing after it."""
    gaps = np.random.default_rng(seed).integers(2, 5, size=len(stories)).tolist()
    lines: list[str] = []
    for story, gap in tqdm(list(zip(stories, gaps, strict=True))):
        left, missing, right = parts_of(story, gap)
        written = " ".join(model.infill(left, f" {right}", **GREEDY).split())
        shown = f"**{written}**" if written else "**(nothing)**"
        lines.append(f"{len(lines) + 1}. {left} {shown} {right}<br>*Missing: {missing}*")
    return "\n".join(lines)


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = command_parser()
    parser.add_argument("--stories", required=True, help="TSV, columns sentence1 to sentence5")
    parser.add_argument("--output", type=output_file, help="Markdown file to write")
    options = parser.parse_args(command_line)
    model = load_language_model(options.model, options.start_token)
    text = samples(model, read_stories(options.stories), options.seed)
    print(text)
    if options.output:
        write_text(options.output, f"{text}\n")


if __name__ == "__main__":
    main()
