"""Fill the missing sentences of a story: several blanks, several samples.

    python -m examples.story
    python -m examples.story --samples 5 --length 24 "It rained all night. ___ By noon the road was gone."

Every blank sees the text on both its sides, and all blanks of all samples are written together. What is
written ends with its last whole sentence.
"""

import argparse
import re
from itertools import zip_longest

from transformers import set_seed

from modeling_magnet import load_magnet

STORY = (
    "Mara found an old map in her grandfather's desk. ___ She packed a lamp and a rope and walked to "
    "the hills. ___ She went home richer than she had ever been."
)


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("story", nargs="?", default=STORY, help="a text with ___ for each blank")
    parser.add_argument(
        "--model", default="checkpoints/magnet-smollm2-135m", help="folder or Hub id"
    )
    parser.add_argument("--samples", type=int, default=3, help="stories to write")
    parser.add_argument("--length", type=int, default=20, help="tokens of a blank, at most")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the sampling")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    options = parser.parse_args(command_line)
    parts = re.split("_{3,}", options.story)
    if len(parts) == 1:
        parser.error("the story has no blank: write ___ where a sentence is missing")
    if options.samples < 2:
        parser.error(f"--samples is {options.samples}: give 2 or more")

    model = load_magnet(options.model).eval()
    set_seed(options.seed)
    blanks = model.infill_blanks(
        parts,
        span_length=options.length,
        do_sample=True,
        temperature=options.temperature,
        num_return_sequences=options.samples,
    )  # a list of samples for each blank
    for number, middles in enumerate(zip(*blanks, strict=True), 1):
        written = [f"[{whole_sentences(middle)}]" for middle in middles]
        pieces = zip_longest(parts, written, fillvalue="")
        print(f"{number}. " + "".join(piece for pair in pieces for piece in pair) + "\n")


def whole_sentences(text: str) -> str:
    """A text up to the last end of a sentence; all of it where there is none."""
    return re.sub(r"(?s)(.*[.!?][\"']?).*", r"\1", text)


if __name__ == "__main__":
    main()
