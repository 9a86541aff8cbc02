"""Load a saved folder as a user does, measure it, and show its three jobs.

    python -m examples.folder outputs/quickstart/model

The folder is loaded by `AutoModel` with the code that lies in it, which is run: take a folder that you
trust. `--results FILE` also writes the
figures and the examples as JSON.
"""

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModel

from evaluation.common.spans import Example, draw_spans, tokenize_rows
from evaluation.common.writing import write_text
from evaluation.tasks.causal import measure_causal
from evaluation.tasks.infilling import infilling_scores, perplexity_table
from modeling_magnet.training.sources import read_rows

DATA = Path(__file__).parent / "data"
ROWS, PAIRS, SEED = 40, 125, 0

INFILLS = [
    ("The capital of France is", " and it lies on the river Seine."),
    ("John went to the gym.", " He could not get the barbell off his chest."),
    ("Kaylee owned a ferret.", " She put flyers all over the neighborhood."),
]
SENTENCES = [
    "A man is playing a guitar on the street.",
    "Somebody is making music outside.",
    "The bank raised its interest rates again.",
]
PROMPT = "The history of the steam engine"
INFILL_LENGTH = 24


def measure(model, sts: str | None = None) -> dict[str, float]:
    """The table's figures, on text that training has not seen.

    Args:
        model: a MAGNET model with its tokenizer.
        sts: a TSV of sentence pairs with human scores, in place of the one that comes along.
    """
    path = str(DATA / "wiki-validation.jsonl")
    texts = [row["text"] for row in read_rows([path], ("text",), counts=Counter())]
    rows = tokenize_rows(texts, model, count=ROWS)
    spans = draw_spans([len(row) for row in rows], SEED)
    examples = [Example.of_text(*pair) for pair in zip(rows, spans, strict=True)]
    found = perplexity_table(infilling_scores(model, examples, ("both_sides", "left_only")))
    figures = {view: figure.value for view, figure in found["perplexity"].items()}
    figures["causal"] = measure_causal(model, rows).value
    with Path(sts or DATA / "sts-answers-forums.tsv").open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    pairs = pairs if sts else pairs[:PAIRS]
    scores = [float(pair["score"]) for pair in pairs]
    for name, prompt in (("sts", None), ("sts_no_prompt", "")):
        one, two = (
            model.encode([pair[side] for pair in pairs], prompt=prompt, normalize_embeddings=True)
            for side in ("sentence1", "sentence2")
        )
        figures[name] = 100 * float(spearmanr((one * two).sum(axis=1), scores).statistic)
    return figures


def show(model) -> dict:
    """What the model gives for one small example of each job."""
    vectors = model.encode(SENTENCES, normalize_embeddings=True)
    inputs = model.tokenizer(PROMPT, return_tensors="pt").to(model.device)
    generated = model.generate(
        **inputs, max_new_tokens=24, do_sample=False, pad_token_id=model.config.eos_token_id
    )
    return {
        "similarity": np.round(vectors @ vectors.T, 2).tolist(),
        "infill": [model.infill(*sides, max_new_tokens=INFILL_LENGTH) for sides in INFILLS],
        "generate": model.tokenizer.decode(generated[0], skip_special_tokens=True),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder that save_pretrained wrote, or a Hub id")
    parser.add_argument("--results", help="JSON file to write")
    parser.add_argument("--sts", help="another TSV with the columns score, sentence1, sentence2")
    arguments = parser.parse_args()
    model = AutoModel.from_pretrained(
        arguments.folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    results = {"figures": measure(model, arguments.sts), "examples": show(model)}
    text = json.dumps(results, indent=2, ensure_ascii=False)
    if arguments.results:
        write_text(Path(arguments.results), text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
