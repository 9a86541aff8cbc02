"""Blind pairs, and scores and agreement counted by hand from filled-in sheets."""

import csv
import json
from collections import Counter
from itertools import pairwise

import pytest

from evaluation.studies import ratings
from evaluation.studies.ratings import (
    COLUMNS,
    agreement,
    agreement_table,
    blind_pairs,
    main,
    read_infillings,
    read_ratings,
    score_ratings,
    write_sheet,
)

METHODS = ["left_only", "both_sides", "five_shot"]


def stories(count=12, prefix="", methods=METHODS):
    """Stories whose infillings say nothing of who wrote them, but for their last letter."""
    return [
        {
            "story": n + 1,
            "gap": 2 + n % 3,
            "left": f"Ida had {n} kites.",
            "right": 'One flew, "high",\nand away.',
            "reference": "It was windy.",
            "infillings": {m: f"{prefix}Café {n}{'xyz'[k]}" for k, m in enumerate(methods)},
        }
        for n in range(count)
    ]


def stored(folder, name, told):
    path = folder / name
    path.write_text(json.dumps({"details": {"infillings": told}}), encoding="utf-8")
    return str(path)


@pytest.fixture
def sheet(tmp_path):
    """A sheet of two methods and eight rows, with its key; returns the rows in order, the key, and a
    function that writes a filled-in copy."""
    rows, key = blind_pairs(stories(8), METHODS[:2], 8)
    write_sheet(rows, key, tmp_path / "sheet.csv", tmp_path / "key.json")

    def fill(name, answers, columns=COLUMNS, order=1, extra=()):
        path = tmp_path / name
        filled = [
            {**row, **dict(zip(("a_fits", "b_fits", "better"), answer))}
            for row, answer in zip(rows, answers)
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows([*filled[::order], *extra])
        return path

    return rows, key, fill


def test_the_sheet_shows_the_stories_and_hides_the_methods(tmp_path):
    told = stories()
    rows, key = blind_pairs(told, METHODS[:2], 10, seed=1)
    path = tmp_path / "sheet.csv"
    write_sheet(rows, key, path, tmp_path / "key.json")
    text = path.read_text(encoding="utf-8-sig")
    assert not [method for method in METHODS if method in text]
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len({row["id"] for row in found}) == 10
    by_number = {story["story"]: story for story in told}
    assert json.loads((tmp_path / "key.json").read_text(encoding="utf-8")) == key
    for row in found:
        hidden = key[row["id"]]
        story = by_number[hidden["story"]]
        assert (row["left"], row["right"]) == (story["left"], story["right"])
        assert row["infilling_a"] == story["infillings"][hidden["A"]]
        assert row["infilling_b"] == story["infillings"][hidden["B"]]
        assert [row[name] for name in ("a_fits", "b_fits", "better")] == ["", "", ""]
        assert hidden["gap"] == story["gap"]


def test_who_is_first_and_where_is_random_but_seeded():
    rows, key = blind_pairs(stories(200), METHODS[:2], 200, seed=3)
    assert (rows, key) == blind_pairs(stories(200), METHODS[:2], 200, seed=3)
    assert rows != blind_pairs(stories(200), METHODS[:2], 200, seed=4)[0]
    first = Counter(key[row["id"]]["A"] for row in rows)
    assert 70 < first["left_only"] < 130
    ids = [row["id"] for row in rows]
    assert ids != sorted(ids)
    numbers = [key[name]["story"] for name in ids]
    assert sorted(numbers) == [*range(1, 201)] != numbers


def test_rows_of_one_story_do_not_follow_each_other():
    told = [story | {"infillings": dict.fromkeys("abcd", "Rain.")} for story in stories(40)]
    rows, key = blind_pairs(told, "abcd", 40)
    numbers = [key[row["id"]]["story"] for row in rows]
    assert len(numbers) == 80
    assert sum(one == other for one, other in pairwise(numbers)) < 8


@pytest.mark.parametrize("count_of_methods", [2, 3, 4, 5, 6])
def test_every_two_methods_meet_equally_often_and_each_once_a_story(count_of_methods):
    methods = [f"m{n}" for n in range(count_of_methods)]
    told = [story | {"infillings": {method: method for method in methods}} for story in stories(30)]
    rounds = count_of_methods - 1 if count_of_methods % 2 == 0 else count_of_methods
    _, key = blind_pairs(told, methods, 2 * rounds)
    pairs = Counter(frozenset((row["A"], row["B"])) for row in key.values())
    assert set(pairs.values()) == {2}
    assert len(pairs) == count_of_methods * (count_of_methods - 1) // 2
    shown = Counter((row["story"], row[side]) for row in key.values() for side in "AB")
    assert set(shown.values()) == {1}
    assert len(shown) == 2 * rounds * (count_of_methods // 2) * 2


def test_files_of_several_models_are_told_apart_by_name(tmp_path):
    one, two = stored(tmp_path, "a", stories(3)), stored(tmp_path, "b", stories(3, "New "))
    found = read_infillings([f"base={one}", f"adapted={two}"])
    assert found[2]["infillings"]["base/five_shot"] == "Café 2z"
    assert found[2]["infillings"]["adapted/five_shot"] == "New Café 2z"
    assert list(read_infillings([one])[0]["infillings"]) == METHODS


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    one = stored(tmp_path, "a", stories(3))
    two = stored(tmp_path, "b", stories(4))
    other = stories(3)
    other[1]["gap"] = 4
    three = stored(tmp_path, "c", other)
    for path in (two, three):
        with pytest.raises(ValueError, match="holds other stories than .*a: measure on the same"):
            read_infillings([f"x={one}", f"y={path}"])
    for names in ([one, two], [f"x={one}", two], [f"x={one}", f"x={two}"]):
        with pytest.raises(ValueError, match="give several files as NAME=FILE, each its own name"):
            read_infillings(names)
    (tmp_path / "d").write_text("[]")
    with pytest.raises(ValueError, match=r'd has no "infillings" in its "details"'):
        read_infillings([str(tmp_path / "d")])


def test_what_cannot_be_shown_is_refused():
    for methods in (["left_only"], ["left_only", "left_only"], ["left_only", "guessing"]):
        with pytest.raises(ValueError, match=r"give two or more of \['left_only', 'both_sides'"):
            blind_pairs(stories(), methods, 3)
    for count in (0, 13):
        with pytest.raises(ValueError, match=f"count is {count}: there are 12 stories"):
            blind_pairs(stories(), METHODS, count)


def test_filled_in_sheets_and_keys_are_not_overwritten(tmp_path):
    rows, key = blind_pairs(stories(), METHODS, 3)
    taken = tmp_path / "taken"
    taken.write_text("yes,no,A")
    for sheet, hidden in ((taken, tmp_path / "new"), (tmp_path / "new", taken)):
        with pytest.raises(FileExistsError, match="taken already exists: move it"):
            write_sheet(rows, key, sheet, hidden)
    assert taken.read_text() == "yes,no,A"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_scores_and_win_rates_counted_by_hand(sheet):
    rows, key, fill = sheet

    def answers(*fits_and_winner):
        """Of each row whether left_only and both_sides fit, and who is better; as A and B."""
        for row, (left, both, winner) in zip(rows, fits_and_winner):
            by_method = {"left_only": left, "both_sides": both}
            hidden = key[row["id"]]
            better = {hidden["A"]: "A", hidden["B"]: "B", None: "same"}[winner]
            yield by_method[hidden["A"]], by_method[hidden["B"]], better

    liked = [("no", "yes", "both_sides")] * 6 + [("yes", "yes", None)] * 2
    disliked = [("no", "No ", "left_only")] * 2
    left_out = [("", "", "")] * 6
    ann = fill("ann.csv", answers(*liked))
    bob = fill("bob.csv", [*answers(*disliked), *left_out])
    found = read_ratings([ann, bob], key)
    assert [len(each) for each in found.values()] == [8, 2]
    figures = score_ratings(found, key)
    assert list(figures) == [
        "both_sides, fits",
        "left_only, fits",
        "both_sides over left_only",
        "both_sides same as left_only",
    ]
    assert figures["both_sides, fits"].value == pytest.approx(100 * 8 / 10)
    assert figures["left_only, fits"].value == pytest.approx(100 * 2 / 10)
    assert figures["both_sides over left_only"].value == pytest.approx(100 * (6 + 2 * 0.5) / 10)
    assert figures["both_sides same as left_only"].value == pytest.approx(100 * 2 / 10)
    for figure in figures.values():
        assert figure.low <= figure.value <= figure.high
        assert figure[3] == 8  # stories, not answers


def test_cohens_kappa_counted_by_hand(sheet):
    _, key, fill = sheet
    first = [("yes", "no", "A")] * 4 + [("no", "no", "B")] * 4
    second = [("yes", "no", "A")] * 3 + [("no", "no", "B")] * 3 + [("yes", "yes", "same")] * 2
    # The rows are given in another order: ids count.
    found = read_ratings([fill("ann.csv", first), fill("bob.csv", second, order=-1)], key)
    ann, bob = found.values()
    result = agreement(ann, bob)
    # better: rows 1-3 A/A, row 4 A/B, 5-6 B/B, 7-8 B/same: 5 of 8 equal. By chance
    # (4 * 3 + 4 * 3 + 0 * 2) / 64 = 24/64, so kappa = (40 - 24) / (64 - 24).
    assert result["better"] == (5 / 8, pytest.approx(16 / 40), 8)
    # fits: a is yes/yes 3, yes/no 1, no/no 2, no/yes 2; b is no/no 6, no/yes 2: 11 of 16 equal.
    # ann says yes 4 times, bob 7: by chance (4 * 7 + 12 * 9) / 256 = 136/256.
    assert result["fits"] == (11 / 16, pytest.approx((176 - 136) / (256 - 136)), 16)
    names = ", ".join(found)
    assert agreement_table(found).split("\n")[2:] == [
        f"| {names} | fits | 68.8 | 0.33 | 16 |",
        f"| {names} | better | 62.5 | 0.40 | 8 |",
    ]


def test_agreement_that_is_undefined_shows_as_a_dash(sheet):
    _, key, fill = sheet
    same = [("yes", "yes", "A")] * 8
    half, rest = [*same[:4], *[("",) * 3] * 4], [*[("",) * 3] * 4, *same[4:]]
    found = read_ratings([fill("ann.csv", same), fill("bob.csv", half), fill("eve.csv", rest)], key)
    lines = agreement_table(found).split("\n")[2:]
    assert [line.split(" | ")[1:] for line in lines] == [
        ["fits", "100.0", "-", "8 |"],  # one answer throughout: no kappa
        ["better", "100.0", "-", "4 |"],
        ["fits", "100.0", "-", "8 |"],
        ["better", "100.0", "-", "4 |"],
        ["fits", "-", "-", "0 |"],  # no row in common
        ["better", "-", "-", "0 |"],
    ]
    (alone,) = agreement_table({"ann.csv": found[next(iter(found))]}).split("\n")[2:]
    assert alone == "| ann.csv alone | - | - | - | - |"


def test_all_that_is_wrong_is_said_at_once_with_its_line(sheet):
    rows, key, fill = sheet
    good = [("yes", "no", "same")] * 8
    stray = dict.fromkeys(COLUMNS, "") | {"id": "r000000"}
    double = dict(rows[0])
    bad = [("yes", "maybe", "A"), ("yes", "", "B"), ("no", "no", "C"), *good[3:]]
    ann = fill("ann.csv", bad, extra=[stray, double])
    bob = fill("bob.csv", good, columns=[*COLUMNS[:-1], "remark"])
    eve = fill("eve.csv", good[:6])
    with pytest.raises(ValueError) as error:
        read_ratings([ann, bob, eve], key)
    told = str(error.value).split("\n")
    # A row takes two lines, since a story has a line break.
    assert told == [
        f"{ann}, line 2: b_fits is 'maybe', expected yes, no",
        f"{ann}, line 4: b_fits is '', expected yes, no",
        f"{ann}, line 6: better is 'C', expected A, B, same",
        f"{ann}, line 18: the id 'r000000' is not in the key",
        f"{ann}, line 19: the id {rows[0]['id']!r} comes twice",
        f"{bob}, line 1: columns ['better'] lack, ['remark'] are unknown or double",
        f"{eve} lacks the ids {rows_of(key, rows[6:])}",
    ]


def rows_of(key, rows):
    names = {row["id"] for row in rows}
    return ", ".join(name for name in key if name in names)


def test_a_row_that_nobody_rated_and_a_file_given_twice_are_refused(sheet):
    rows, key, fill = sheet
    ann = fill("ann.csv", [("yes", "no", "same")] * 7 + [("", " ", "")])
    with pytest.raises(ValueError, match=f"^rated by none: {rows[7]['id']}$"):
        read_ratings([ann], key)
    with pytest.raises(ValueError, match="give each file once"):
        read_ratings([ann, ann], key)


def test_a_torn_row_and_an_empty_file_are_refused(sheet, tmp_path):
    _, key, fill = sheet
    ann = fill("ann.csv", [("yes", "no", "same")] * 8)
    ann.write_text(ann.read_text(encoding="utf-8") + "\nr1,torn\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 19: got 2 fields, expected 8"):
        read_ratings([ann], key)
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"empty.csv, line 1: columns \['id', .* lack"):
        read_ratings([empty], key)


def test_the_commands_go_round(tmp_path, capsys):
    told, sheet, key = stored(tmp_path, "a", stories(6)), tmp_path / "s.csv", tmp_path / "k.json"
    places = ["--sheet", str(sheet), "--key", str(key)]
    main(["export", told, "--methods", *METHODS, "--count", "6", *places])
    assert "6 rows, infillings: " in capsys.readouterr().out
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:  # this rater likes what both_sides wrote, which ends in y
            fits = ["yes" if row[f"infilling_{k}"].endswith("y") else "no" for k in "ab"]
            better = {("yes", "no"): "a", ("no", "yes"): "b"}.get(tuple(fits), "SAME")
            writer.writerow({**row, "a_fits": fits[0], "b_fits": fits[1], "better": better})
    main(["score", str(sheet), "--key", str(key)])
    printed = capsys.readouterr().out
    assert "| both_sides, fits | 100.0 (100.0 to 100.0) | 4 |" in printed
    assert "| five_shot, fits | 0.0 (0.0 to 0.0) | 4 |" in printed
    assert "| both_sides over left_only | 100.0 (100.0 to 100.0) | 2 |" in printed
    assert "| five_shot over left_only | 50.0 (50.0 to 50.0) | 2 |" in printed
    assert f"| {sheet} alone | - | - | - | - |" in printed
    with pytest.raises(SystemExit, match="2"):
        main(["export", told, "--methods", *METHODS, "--count", "6", *places])
    assert "s.csv already exists" in capsys.readouterr().err


def test_a_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    rows, key = blind_pairs(stories(), METHODS, 3)
    written = []
    write = ratings.Path.write_bytes

    def fail(self, content):
        written.append(self.name)
        if len(written) == 2:
            raise OSError("disk full")
        return write(self, content)

    monkeypatch.setattr(ratings.Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sheet(rows, key, tmp_path / "s.csv", tmp_path / "k.json")
    assert len(written) == 2 and not list(tmp_path.iterdir())
