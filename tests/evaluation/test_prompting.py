"""Infillings by prompts: the paper's prompts letter by letter, and judgements counted by hand."""

import json
import math

import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer
from tiny import SENTENCES, make_model

from evaluation.common.generating import Continuation, continuations
from evaluation.common.judging import judge_infillings
from evaluation.common.texts import STORY_COLUMNS, sentences
from evaluation.tasks import prompting
from evaluation.tasks.prompting import (
    METHODS,
    as_table,
    measure_prompting,
    prompt_of,
    write_infillings,
)

IDA = ["Ida had a kite.", "It tore.", "She got tape.", "She mended it!", "It flew."]
TOM = ["Tom woke up.", "He heard a cat.", "He took a lamp.", "It sat on a shelf.", "He laughed."]
EVA = ["Eva sold pears.", "Rain came.", "Nobody bought any.", "She baked a pie.", "All ate."]
STORIES, GAPS = [IDA, TOM, EVA], [2, 4, 3]
EXAMPLES = [(SENTENCES, 2), (SENTENCES[::-1], 3), (IDA[::-1], 4), (TOM[::-1], 2), (EVA[::-1], 3)]


@pytest.fixture
def model():
    """A tiny model that can read five solved examples, with a start token."""
    found = make_model(max_position_embeddings=4096)
    found.config.magnet = {"start_token_id": 0}
    return found


def test_prompts_are_those_of_appendix_b():
    assert prompt_of("left_only", IDA, 3) == "Ida had a kite. It tore."
    assert prompt_of("blank", IDA, 2) == (
        "Generate the missing line represented by _ in the given text: "
        "Ida had a kite. _ She got tape. She mended it! It flew.\n"
        "Generate a single sentence.\n"
        "The missing line is:"
    )
    assert prompt_of("contextual", IDA, 3) == (
        'Fill in the missing sentence between "Ida had a kite. It tore." and '
        '"She mended it! It flew.". Generate only one sentence. The missing sentence is:'
    )
    assert prompt_of("prefix_suffix", IDA, 4) == (
        "Given the prefix and the suffix, generate the middle sentence.\n"
        "Prefix: Ida had a kite. It tore. She got tape.\n"
        "Suffix: It flew.\n"
        "Generate only one sentence.\n"
        "Middle:"
    )
    assert prompt_of("line_by_line", IDA, 2) == (
        "You have a five-sentence story with some missing text.\n"
        "Here is the context for each line, with the missing line indicated:\n"
        "Line 1: Ida had a kite.\n"
        "Line 2: [Missing Line]\n"
        "Line 3: She got tape.\n"
        "Line 4: She mended it!\n"
        "Line 5: It flew.\n"
        "Please generate the missing line of the story. "
        "Please generate only the missing line and nothing else.\n"
        "The missing line is: Line 2:"
    )


def test_five_shot_shows_each_example_solved_and_asks_for_the_sixth():
    blocks = prompt_of("five_shot", IDA, 2, EXAMPLES).split("\n\n")
    assert blocks[5] == prompt_of("line_by_line", IDA, 2)
    for (story, gap), block in zip(EXAMPLES, blocks[:5], strict=True):
        assert block == f"{prompt_of('line_by_line', story, gap)} {story[gap - 1]}"
    assert len(blocks) == 6


def test_no_prompt_shows_the_missing_sentence():
    for method in prompting.PROMPTS:
        for gap in range(1, 6):
            assert TOM[gap - 1] not in prompt_of(method, TOM, gap, [(IDA, 2)])


def test_a_batch_writes_what_single_stories_do(model):
    together = write_infillings(
        model, STORIES, GAPS, examples=EXAMPLES, new_tokens=12, batch_size=2
    )
    assert list(together) == list(METHODS)
    for i, story in enumerate(STORIES):
        alone = write_infillings(model, [story], [GAPS[i]], examples=EXAMPLES, new_tokens=12)
        assert {method: texts[i] for method, texts in together.items()} == {
            method: texts[0] for method, texts in alone.items()
        }
    assert len({text for texts in together.values() for text in texts}) > 10


@pytest.mark.parametrize(("story", "gap"), [(IDA, 1), (IDA, 3), (TOM, 4), (EVA, 5)])
def test_both_sides_fills_a_gap_as_long_as_the_missing_sentence_in_the_whole_story(
    model, monkeypatch, story, gap
):
    whole = model.tokenizer(" ".join(story), return_offsets_mapping=True)["offset_mapping"]
    first, last = len(" ".join(story[: gap - 1])), len(" ".join(story[:gap]))
    length = sum(first < end <= last for _, end in whole)
    infill, asked = model.infill, []

    def spy(lefts, rights, span_length, **arguments):
        asked.append((lefts, rights, span_length))
        return infill(lefts, rights, span_length, **arguments)

    monkeypatch.setattr(model, "infill", spy)
    written = write_infillings(model, [story], [gap], ["both_sides"])
    left, right = " ".join(story[: gap - 1]), " ".join(["", *story[gap:]])
    assert asked == [([left], [right], [length])]
    expected = infill(left, right, length, do_sample=False, eos_token_id=[0, 1])
    assert written["both_sides"] == [expected.strip()]


def test_left_only_continues_the_left_context_and_ignores_the_right(model):
    swapped = [*IDA[:2], *TOM[2:]]
    written = write_infillings(model, [IDA, swapped], [3, 3], ["left_only"])
    (made,) = continuations(model, ["Ida had a kite. It tore."], 100, 40)
    expected = sentences(made.written)[0]
    assert written["left_only"] == [expected, expected]


def test_a_prompted_sentence_ends_at_its_end_or_line_and_loses_quotes_around_it(model, monkeypatch):
    told = [
        ("\nIt rained. Then it\nended", "It rained."),
        (" It rained\nYou have", "It rained"),
        (' "It rained."\n', "It rained."),
        (' "It rained.". Then', "It rained."),
        (' "It rained. Then it', "It rained."),
        (' "Rain," she said.', '"Rain," she said.'),
        (" \n ", ""),
    ]

    def write(model, prompts, *_):
        return [Continuation(prompt, text, "") for prompt, (text, _) in zip(prompts, told)]

    monkeypatch.setattr(prompting, "continuations", write)
    stories, gaps = [IDA] * len(told), [2] * len(told)
    found = write_infillings(model, stories, gaps, ["contextual"])
    assert found["contextual"] == [expected for _, expected in told]
    found = write_infillings(model, stories, gaps, ["left_only"])
    assert found["left_only"][2] == '"It rained."'  # what a person says, in a story


def test_a_missing_first_sentence_needs_a_start_token(model):
    found = write_infillings(model, [IDA], [1], ["left_only", "blank"])
    assert len(found) == 2
    model.config.magnet = {"start_token_id": None}
    with pytest.raises(ValueError, match="left_only has nothing before .* set start_token_id"):
        write_infillings(model, [IDA], [1], ["left_only"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["blank", "telepathy"]}, r"got the methods \['telepathy'\]: there are"),
        ({"methods": ["five_shot"], "examples": EXAMPLES[:4]}, "five_shot got 4 examples: give 5"),
        ({"gaps": [1]}, "got 3 stories and 1 gaps: give one gap per story"),
        ({"gaps": [1, 2, 6]}, r"story 2 is \['Eva .*its gap 6: give five sentences"),
        ({"stories": [IDA, TOM[:4], EVA]}, r"story 1 is \['Tom"),
        ({"stories": [IDA, TOM, [*EVA[:4], ""]]}, r"story 2 is \['Eva"),
        ({"new_tokens": 4000}, r"blank needs 4\d+ positions \(4000 of them to be written\), the"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(model, monkeypatch, arguments, message):
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("it was written"))
    asked = {"stories": STORIES, "gaps": GAPS, "methods": ["both_sides", "blank"]} | arguments
    with pytest.raises(ValueError, match=message):
        write_infillings(model, **asked)


class Letters:
    """An encoder whose vectors count the letters a, b and c."""

    def encode(self, texts):
        assert all(texts)
        return np.array([[text.lower().count(letter) for letter in "abc"] for text in texts])


def test_judgements_counted_by_hand(model):
    story = ["A cab came.", "A cat sat there.", "“Back!” Bob ran.", "It is late.", "Nobody knew."]
    written = {
        "one": ["A cat sat", "it IS - late"],  # the second is line 4
        "two": ["", "Cats there! A cab came."],  # the second holds line 1
        "three": ["_", "back"],  # nothing; a sentence of line 3
    }
    stories, gaps = [story, story], [2, 2]
    found = judge_infillings(written, stories, gaps, model, Letters())

    def values(judgement):
        return [round(found[f"{method}, {judgement}"].value, 6) for method in written]

    # The reference's stems are a, cat, sat, there. In order, "a cat sat" has 3 of 3 and 3 of 4: F is
    # 6/7; "cat there a cab came" has 2 of 5 and 2 of 4: F is 4/9.
    assert values("ROUGE-L") == [
        pytest.approx(100 * (6 / 7 + 0) / 2),
        pytest.approx(100 * (0 + 4 / 9) / 2),
        0,
    ]
    # a, b, c of the reference: 3, 0, 1.
    cosines = [
        (3 * 3 + 1) / math.sqrt(10 * 10),
        (1 * 3) / math.sqrt(1 * 10),  # "late": 1, 0, 0
        (4 * 3 + 1 * 3) / math.sqrt((16 + 1 + 9) * 10),  # 4, 1, 3
        (1 * 3 + 1) / math.sqrt((1 + 1 + 1) * 10),  # 1, 1, 1
    ]
    assert values("similarity") == pytest.approx(
        [50 * (cosines[0] + cosines[1]), 50 * cosines[2], 50 * cosines[3]], abs=1e-5
    )
    assert values("copied") == [50, 50, 50]
    assert values("empty") == [0, 50, 50]
    assert values("length") == [100 * 7 / 8, 100 * 5 / 8, 100 * 2 / 8]
    assert found["reference, copied"].value == 0
    assert "reference, ROUGE-L" not in found
    assert {figure[3] for figure in found.values()} == {2}


def test_similarity_is_left_out_without_an_encoder(model):
    found = judge_infillings({"one": ["Rain."]}, [IDA], [2], model)
    assert not [name for name in found if "similarity" in name]


def test_the_sentences_of_the_examples_are_copied_by_five_shot_alone(model):
    written = {"five_shot": ["he LAUGHED"], "blank": ["he LAUGHED"]}
    found = judge_infillings(written, [IDA], [2], model, examples=[(TOM, 2)])
    assert found["five_shot, copied"].value == 100
    assert found["blank, copied"].value == 0


@pytest.mark.parametrize("start", [0, None])
def test_perplexity_is_that_of_the_whole_stories_token_by_token(model, start):
    model.config.magnet = {"start_token_id": start}
    written = {"one": ["A cat sleeps.", ""], "two": ["Rain!", "Nobody in the village."]}
    found = judge_infillings(written, STORIES[:2], GAPS[:2], model, batch_size=3)
    for method, texts in {**written, "reference": [IDA[1], TOM[3]]}.items():
        ida = " ".join([IDA[0], texts[0], *IDA[2:]])
        tom = " ".join([*TOM[:3], texts[1], TOM[4]]).replace("  ", " ")
        total, count = 0.0, 0
        for text in (ida, tom):
            ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
            if start is not None:
                ids = torch.cat([torch.tensor([[start]]), ids], 1)
            with torch.no_grad():
                output = model(input_ids=ids, labels=ids)
            total += float(output.loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        figure = found[f"{method}, story perplexity"]
        assert figure.value == pytest.approx(math.exp(total / count), rel=1e-4)
        assert figure.low <= figure.value <= figure.high


@pytest.fixture
def roc(tmp_path):
    path = tmp_path / "stories.tsv"
    stories = [[f"{name} came.", *IDA[1:4], f"{name} left."] for name in "ABCDEFGHIJK"]
    lines = ["\t".join(line) for line in [STORY_COLUMNS, *stories]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_measured_stories_are_drawn_apart_from_the_examples(model, roc, monkeypatch):
    shown = []

    def write(model, stories, gaps, methods, examples, **_):
        shown.append((stories, gaps, examples))
        return {"blank": ["Rain."] * len(stories)}

    monkeypatch.setattr(prompting, "write_infillings", write)
    _, few = measure_prompting(model, roc, 3, seed=4)
    figures, many = measure_prompting(model, roc, seed=4)
    assert many[:3] == few and len(many) == 6  # all but the five examples
    stories, gaps, examples = shown[1]
    names = [story[0] for story in stories] + [story[0] for story, _ in examples]
    assert sorted(names) == [f"{name} came." for name in "ABCDEFGHIJK"]
    assert {*gaps, *(gap for _, gap in examples)} <= {2, 3, 4}
    assert shown[0][2] == examples
    assert figures["blank, ROUGE-L"][3] == 6
    found = many[0]
    assert found["left"].split()[0] == "ABCDEFGHIJK"[found["story"] - 1]
    whole = " ".join([found["left"], found["reference"], found["right"]])
    assert whole == " ".join(stories[0])
    assert found["reference"] == IDA[found["gap"] - 1]
    assert found["infillings"] == {"blank": "Rain."}
    _, others = measure_prompting(model, roc, 3, seed=5)
    assert others != few


def test_a_judge_of_its_own_is_asked(model, roc):
    arguments = {"limit": 2, "methods": ["left_only"]}
    own, _ = measure_prompting(model, roc, **arguments)
    judged, _ = measure_prompting(model, roc, judge_model=make_model(seed=1), **arguments)
    name = "reference, story perplexity"
    assert judged[name].value != pytest.approx(own[name].value, rel=1e-3)
    assert judged["left_only, ROUGE-L"] == own["left_only, ROUGE-L"]


def test_too_few_stories_are_refused(model, tmp_path, roc):
    few = tmp_path / "few.tsv"
    few.write_text("\n".join(roc.read_text().split("\n")[:6]) + "\n")
    with pytest.raises(ValueError, match="has 5 stories, the limit is None: 5 are the solved exam"):
        measure_prompting(model, few)
    with pytest.raises(ValueError, match="has 11 stories, the limit is 0"):
        measure_prompting(model, roc, 0)


def test_the_command_prints_a_method_a_row_and_stores_what_was_written(
    model, roc, tmp_path, monkeypatch, capsys
):
    folder, output = tmp_path / "model", tmp_path / "infillings.json"
    model.save_pretrained(folder)
    methods = ["both_sides", "line_by_line"]
    command = ["--model", str(folder), "--roc", str(roc), "--limit", "2", "--show", "1"]
    prompting.main([*command, "--methods", *methods, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "| | ROUGE-L | story perplexity | copied | length | empty | n |" in printed
    rows = [line.split(" | ")[0] for line in printed.split("\n") if line.startswith("| ")]
    assert rows[1:] == ["| both_sides", "| line_by_line", "| reference"]
    content = json.loads(output.read_text(encoding="utf-8"))
    (first, second) = content["details"]["infillings"]
    assert list(first["infillings"]) == methods
    assert f"Story {first['story']}: {first['left']} [...] {first['right']}" in printed
    assert f"Story {second['story']}:" not in printed
    figure = content["figures"]["both_sides, ROUGE-L"]
    written = [found["infillings"]["both_sides"] for found in (first, second)]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score(found["reference"], text)["rougeL"].fmeasure
        for found, text in zip((first, second), written, strict=True)
    ]
    assert figure["value"] == pytest.approx(50 * sum(scores))
    assert not list(tmp_path.glob("*.partial"))


def test_a_figure_that_lacks_shows_as_a_dash(model):
    figures = judge_infillings({"one": ["Rain."]}, [IDA], [2], model)
    reference = as_table(figures).split("\n")[-1]
    assert reference.startswith("| reference | - | ")
