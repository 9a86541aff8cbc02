"""Blind pairs of infillings for people to rate, and what their ratings say (MAGNET, Table 5).

    python -m evaluation.studies.ratings export base=base.json adapted=adapted.json \\
        --methods base/five_shot adapted/both_sides --count 100 --sheet sheet.csv --key key.json
    python -m evaluation.studies.ratings score --key key.json ann.csv bob.csv

The inputs of `export` are what `evaluation.tasks.prompting` or `evaluation.run` wrote. A row of the sheet
shows a story with its gap and two infillings, A and B; which methods wrote them stands in the key
alone. A rater fills in three columns: `a_fits` and `b_fits`, "yes" where the sentence is contextually
appropriate and the story coherent with it (Table 5's question), else "no"; and `better`, "A", "B" or
"same". A rater may leave rows out, but somebody has to rate each.

With more than two methods each story shows every method once (one left out if their number is odd),
and the pairs rotate from story to story, so that each two methods meet equally often.
"""

import argparse
import csv
import io
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import cohen_kappa_score

from evaluation.common.figures import Figure, table
from evaluation.common.writing import markdown
from modeling_magnet.atomic import atomic_write

QUESTIONS = {"a_fits": ("yes", "no"), "b_fits": ("yes", "no"), "better": ("A", "B", "same")}
COLUMNS = ("id", "left", "right", "infilling_a", "infilling_b", *QUESTIONS)

Key = dict[str, dict[str, Any]]
"""By the id of a row: `story` and `gap`, and the methods `A` and `B`."""

Answers = dict[str, dict[str, str]]
"""By the id of a row that was rated: the answer to each question."""


def read_infillings(inputs: Sequence[str]) -> list[dict[str, Any]]:
    """The stories of one or more files, with all their infillings.

    Of several files as `NAME=FILE`, the methods are `NAME/METHOD`.

    Raises:
        ValueError: a file holds no infillings, a name lacks or comes twice, or the files hold
            different stories.
    """
    named = [given.split("=", 1) if "=" in given else ["", given] for given in inputs]
    names = [name for name, _ in named]
    if len(inputs) > 1 and (not all(names) or len(set(names)) < len(names)):
        raise ValueError(f"got {list(inputs)}: give several files as NAME=FILE, each its own name")
    stories: list[dict[str, Any]] = []
    for name, path in named:
        found = _read_file(path)
        if not stories:
            stories = [story | {"infillings": {}} for story in found]
        if [_identity(story) for story in found] != [_identity(story) for story in stories]:
            raise ValueError(f"{path} holds other stories than {named[0][1]}: measure on the same")
        for story, other in zip(stories, found, strict=True):
            for method, text in other["infillings"].items():
                story["infillings"][f"{name}/{method}" if name else method] = text
    return stories


def _read_file(path: str) -> list[dict[str, Any]]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    details = content.get("details", {}) if isinstance(content, dict) else {}
    if not details.get("infillings"):
        raise ValueError(
            f'{path} has no "infillings" in its "details": give a file that evaluation.tasks.prompting '
            "or the task prompting of evaluation.run wrote"
        )
    return details["infillings"]


def _identity(story: dict[str, Any]) -> tuple:
    return tuple(story[name] for name in ("story", "gap", "left", "right", "reference"))


def blind_pairs(
    stories: Sequence[dict[str, Any]], methods: Sequence[str], count: int, seed: int = 0
) -> tuple[list[dict[str, str]], Key]:
    """The rows of a sheet, which do not say who wrote the infillings, and the key.

    Raises:
        ValueError: there are fewer stories or methods, a method comes twice or is unknown.
    """
    known = list(stories[0]["infillings"])
    unknown = [method for method in methods if method not in known]
    if unknown or len(set(methods)) < max(2, len(methods)):
        raise ValueError(f"got the methods {list(methods)}: give two or more of {known}")
    if not 0 < count <= len(stories):
        raise ValueError(f"count is {count}: there are {len(stories)} stories, give 1 or more")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(stories))[:count]
    rounds = cycle(_rounds(methods))
    pairs = [(stories[i], pair) for i, found in zip(chosen, rounds, strict=False) for pair in found]
    numbers = generator.choice(16**6, size=len(pairs), replace=False)
    rows, key = [], {}
    for number, (story, pair) in zip(numbers, pairs, strict=True):
        first, second = (pair[k] for k in generator.permutation(2))
        texts = (story["infillings"][method] for method in (first, second))
        name = f"r{number:06x}"  # the letter keeps spreadsheets from reading 123e45 as a number
        cells = (name, story["left"], story["right"], *texts, "", "", "")
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
        key[name] = {"story": story["story"], "gap": story["gap"], "A": first, "B": second}
    return [rows[i] for i in generator.permutation(len(rows))], key


def _rounds(methods: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """Pairings in which each stands once, and over all of which each two meet once."""
    ring = [*methods, *[""] * (len(methods) % 2)]
    for _ in ring[1:]:
        half = len(ring) // 2
        yield [pair for pair in zip(ring[:half], ring[: -half - 1 : -1], strict=True) if all(pair)]
        ring = [ring[0], ring[-1], *ring[1:-1]]


def write_sheet(rows: Sequence[dict[str, str]], key: Key, sheet: Path, key_path: Path) -> None:
    """Write both files, whole or not at all, with a byte order mark for spreadsheets.

    Raises:
        FileExistsError: one is there; it may hold somebody's ratings, or be the key to them.
    """
    for path in (sheet, key_path):
        if path.exists():
            raise FileExistsError(f"{path} already exists: move it, or give another name")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    hidden = json.dumps(key, indent=1, ensure_ascii=False) + "\n"
    with atomic_write(sheet) as first, atomic_write(key_path) as second:
        first.write_bytes(text.getvalue().encode("utf-8-sig"))
        second.write_bytes(hidden.encode())


def read_ratings(paths: Sequence[str | Path], key: Key) -> dict[str, Answers]:
    """What each rater answered, by the file's name.

    Raises:
        ValueError: with everything that is wrong in any of the files: a column or an id lacks, is
            unknown or comes twice, an answer is none of its question's or lacks beside others, or
            nobody rated a row.
    """
    problems: list[str] = []
    if len({Path(path).resolve() for path in paths}) < len(paths):
        problems.append(f"got {[str(path) for path in paths]}: give each file once")
    ratings = {str(path): _read_sheet(Path(path), key, problems) for path in paths}
    rated = {name for answers in ratings.values() for name in answers}
    lacking = [name for name in key if name not in rated]
    if lacking and not problems:
        problems.append(f"rated by none: {', '.join(lacking)}")
    if problems:
        raise ValueError("\n".join(problems))
    return ratings


def _read_sheet(path: Path, key: Key, problems: list[str]) -> Answers:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        lines, last = [], 0
        for fields in reader:
            if fields:  # not an empty line
                lines.append((last + 1, fields))  # a field may hold line breaks
            last = reader.line_num
    header = lines[0][1] if lines else []
    lacking = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS]
    if lacking or unknown or len(set(header)) < len(header):
        problems.append(f"{path}, line 1: columns {lacking} lack, {unknown} are unknown or double")
        return {}
    answers: Answers = {}
    seen: set[str] = set()
    for number, fields in lines[1:]:
        where = f"{path}, line {number}"
        row = dict(zip(header, fields, strict=False))
        if len(fields) != len(header):
            problems.append(f"{where}: got {len(fields)} fields, expected {len(header)}")
        elif row["id"] not in key or row["id"] in seen:
            told = "comes twice" if row["id"] in seen else "is not in the key"
            problems.append(f"{where}: the id {row['id']!r} {told}")
        elif any(row[question].strip() for question in QUESTIONS):
            answers[row["id"]] = _answers_of(row, where, problems)
        seen.add(row.get("id", ""))
    missing = [name for name in key if name not in seen]
    if missing:
        problems.append(f"{path} lacks the ids {', '.join(missing)}")
    return answers


def _answers_of(row: dict[str, str], where: str, problems: list[str]) -> dict[str, str]:
    found = {}
    for question, allowed in QUESTIONS.items():
        given = row[question].strip()
        known = {answer.lower(): answer for answer in allowed}
        if given.lower() not in known:
            problems.append(f"{where}: {question} is {given!r}, expected {', '.join(allowed)}")
        found[question] = known.get(given.lower(), "")
    return found


def score_ratings(ratings: Mapping[str, Answers], key: Key, seed: int = 0) -> dict[str, Figure]:
    """What the ratings say of the methods, in % of all raters' answers.

    Returns:
        `METHOD, fits`: the infillings found contextually appropriate, Table 5's score. `METHOD over
        OTHER`: where it was better, "same" counted half to each. `METHOD same as OTHER`: the ties.
    """
    # By figure and story: the sum of the answers, and their number.
    tallies: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))

    def count(name: str, row: dict[str, Any], value: float) -> None:
        tally = tallies[name][row["story"]]
        tally[0] += value
        tally[1] += 1

    for answers in ratings.values():
        for name, answer in answers.items():
            row = key[name]
            one, other = sorted((row["A"], row["B"]))
            preferred = row.get(answer["better"])  # None: the same
            count(f"{row['A']}, fits", row, answer["a_fits"] == "yes")
            count(f"{row['B']}, fits", row, answer["b_fits"] == "yes")
            count(f"{one} over {other}", row, 0.5 if preferred is None else preferred == one)
            count(f"{one} same as {other}", row, preferred is None)
    names = sorted(tallies, key=lambda name: (not name.endswith(", fits"), name))
    figures = {}
    for name in names:
        sums, counts = np.transpose([*tallies[name].values()])  # (stories,)
        figures[name] = Figure.of_ratio(sums, counts, seed).scaled(100)
    return figures


class Agreement(NamedTuple):
    """How two raters agree on a question; kappa is NaN where both gave one same answer throughout."""

    raw: float  # share of equal answers
    kappa: float  # Cohen's
    answers: int


def agreement(one: Answers, other: Answers) -> dict[str, Agreement | None]:
    """Agreement of two raters on `fits` and `better`, over the rows that both rated; None: no row."""
    both = [name for name in one if name in other]
    found: dict[str, Agreement | None] = {}
    for label, questions in {"fits": ("a_fits", "b_fits"), "better": ("better",)}.items():
        pairs = [(one[name][q], other[name][q]) for name in both for q in questions]
        found[label] = None
        if pairs:
            labels = list(QUESTIONS[questions[0]])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UndefinedMetricWarning)
                kappa = float(cohen_kappa_score(*zip(*pairs, strict=True), labels=labels))
            raw = sum(a == b for a, b in pairs) / len(pairs)
            found[label] = Agreement(raw, kappa, len(pairs))
    return found


def agreement_table(ratings: Mapping[str, Answers]) -> str:
    """The agreement of every two raters, in Markdown; `-` where there is none to measure."""
    rows = []
    for one, other in combinations(ratings, 2):
        for label, found in agreement(ratings[one], ratings[other]).items():
            shown: list[object] = ["-", "-", 0]
            if found:
                kappa = "-" if np.isnan(found.kappa) else f"{found.kappa:.2f}"
                shown = [f"{100 * found.raw:.1f}", kappa, found.answers]
            rows.append([f"{one}, {other}", label, *shown])
    if len(ratings) == 1:
        rows.append([f"{next(iter(ratings))} alone", "-", "-", "-", "-"])
    return markdown(["raters", "question", "agreement, %", "Cohen's kappa", "n"], rows)


def main(command_line: list[str] | None = None) -> None:
    """Export a sheet for raters, or score what they filled in."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = argparse.ArgumentDefaultsHelpFormatter
    add = commands.add_parser("export", formatter_class=defaults).add_argument
    add("inputs", nargs="+", help="FILE, or NAME=FILE of several models")
    add("--methods", nargs="+", required=True, help="METHOD, or NAME/METHOD")
    add("--count", type=int, default=100, help="stories to show")
    add("--seed", type=int, default=0, help="of stories, order and ids")
    add("--sheet", type=Path, required=True, help="CSV file to write, to be rated")
    add("--key", type=Path, required=True, help="JSON file to write, to be hidden")
    add = commands.add_parser("score", formatter_class=defaults).add_argument
    add("sheets", nargs="+", help="filled in sheets, one a rater")
    add("--key", type=Path, required=True, help="JSON file that export wrote")
    add("--seed", type=int, default=0, help="of the bootstrap")
    options = parser.parse_args(command_line)
    try:
        if options.command == "export":
            stories = read_infillings(options.inputs)
            rows, key = blind_pairs(stories, options.methods, options.count, options.seed)
            write_sheet(rows, key, options.sheet, options.key)
            shown = Counter(method for row in key.values() for method in (row["A"], row["B"]))
            told = ", ".join(f"{method} {n}" for method, n in shown.items())
            print(f"{len(rows)} rows, infillings: {told}")
        else:
            key = json.loads(options.key.read_text(encoding="utf-8"))
            ratings = read_ratings(options.sheets, key)
            print("In % of the answers (95 % bootstrap interval over n stories)\n")
            print(table({"%": score_ratings(ratings, key, options.seed)}, digits=1))
            print(f"\n{agreement_table(ratings)}")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
