"""Multiple choice: lm-eval's accuracies against summed log-probabilities, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from evaluation.tasks.choices import check_choices, measure_choices

QUESTIONS = {
    "What does a cat do on warm stones?": ["It sleeps there for most of the day.", "It rains."],
    "Who built the old bridge?": ["Nobody in the village remembered.", "A cat", "The harbour"],
    "When did the café open?": ["At 7.", "Before the boats came home, and then the rain began!"],
    "How many lanterns did she count?": ["Twelve", "Seven lanterns near the door", "None", "Two"],
    "Where is the harbour quiet?": ["In the village", "Near the door of the café"],
    "What came home?": ["Boats", "Naïve façades, and then twelve more of them"],
    "What began?": ["The rain", "A very long and quiet bridge near the old harbour"],
    "What is warm?": ["The stones near the door", "Größe", "Rain"],
}


@torch.no_grad()
def scores(model, question, choices):
    """The summed log-probability of each choice behind the question."""
    found = []
    before = model.tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    for choice in choices:
        ids = model.tokenizer(f"Question: {question}\nAnswer: {choice}")["input_ids"]
        assert ids[: len(before)] == before and model.tokenizer.bos_token_id not in ids
        logits = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)  # (length, vocabulary)
        found.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids))))
    return np.array(found)


def best(model):
    """The numbers of the choices that win by the sum, and by the sum a character."""
    sums, means = [], []
    for question, choices in QUESTIONS.items():
        found = scores(model, question, choices)
        sums.append(int(found.argmax()))
        means.append(int((found / [len(choice) for choice in choices]).argmax()))
    return sums, means


def write(path, answers, repeat=1):
    rows = [
        {"question": question, "choices": choices, "answer": answer, "note": "unread"}
        for (question, choices), answer in zip(QUESTIONS.items(), answers, strict=True)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows for _ in range(repeat)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_accuracies_are_those_of_summed_log_probabilities(tiny, tmp_path):
    sums, means = best(tiny)
    agree = 100 * np.mean(np.equal(sums, means))
    assert 0 < agree < 100 and len({*sums}) > 1 and len({*means}) > 1
    by_sum = write(tmp_path / "by_sum.jsonl", sums)
    by_mean = write(tmp_path / "by_mean.jsonl", means)
    found = measure_choices(tiny, [by_sum, by_mean], batch_size=3)
    assert list(found) == [
        "by_sum", "by_sum, length-normalised", "by_mean", "by_mean, length-normalised",
    ]  # fmt: skip
    assert found["by_sum"] == (100, 100, 100, 8) == found["by_mean, length-normalised"]
    for name in ("by_sum, length-normalised", "by_mean"):
        assert found[name].value == pytest.approx(agree)
        assert 0 <= found[name].low < agree < found[name].high <= 100
    others = [(answer + 1) % 2 for answer in sums]
    found = measure_choices(tiny, [write(tmp_path / "arc_easy.jsonl", others)])
    expected = 100 * np.mean(np.equal(sums, others))
    assert expected < 50 and found["ARC-easy"].value == pytest.approx(expected)


@pytest.fixture
def asked(monkeypatch):
    """What lm-eval asks a model for, call by call: pairs of a context and a choice. The first wins."""
    calls = []

    def read(self, requests, disable_tqdm=False):
        calls.append([request.args for request in requests])
        return [(-float(i), False) for i in range(len(requests))]

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.loglikelihood", read)
    return calls


def test_the_format_is_that_of_arc_easy(tiny, asked, tmp_path):
    measure_choices(tiny, [write(tmp_path / "made.jsonl", [0] * 8)])
    expected = [
        (f"Question: {question}\nAnswer:", f" {choice}")
        for question, choices in QUESTIONS.items()
        for choice in choices
    ]
    assert asked == [expected]


def test_a_limit_draws_and_does_not_take_the_first(tiny, tmp_path):
    """The first half is answered right, the second wrong."""
    sums, _ = best(tiny)
    answers = [*sums[:4], *((answer + 1) % 2 for answer in sums[4:])]
    path = write(tmp_path / "halves.jsonl", answers, repeat=5)
    found = [measure_choices(tiny, [path], limit=10, seed=seed)["halves"] for seed in (0, 0, 1, 2)]
    assert all(figure.examples == 10 and 0 < figure.value < 100 for figure in found)
    assert found[0] == found[1] and len({figure.value for figure in found}) > 1
    assert measure_choices(tiny, [path], limit=1000)["halves"][::3] == (50, 40)
    with pytest.raises(ValueError, match="limit is 0: give 1 or more"):
        measure_choices(tiny, [path], limit=0)


def test_it_is_quiet_and_leaves_no_traces(tiny, tmp_path, capfd):
    path = write(tmp_path / "made.jsonl", [0] * 8)
    tiny.tokenizer.pad_token = None
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    measure_choices(tiny, [path])
    assert (torch.rand(1).item(), np.random.rand()) == expected
    assert tiny.tokenizer.pad_token is None
    shown = capfd.readouterr()
    lines = [line for line in shown.err.replace("\r", "\n").split("\n") if line.strip()]
    assert lines and all("%|" in line for line in lines)  # bars
    assert not shown.out


def test_what_is_cut_is_said_once(tiny, tmp_path, caplog):
    path = tmp_path / "long.jsonl"
    row = {"question": "The quiet harbour? " * 90, "choices": ["Yes", "No"], "answer": 0}
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.warns(UserWarning, match="^2 choices were cut from the left to 256 tokens"):
        assert measure_choices(tiny, [str(path)])["long"].examples == 1
    assert not caplog.records


@pytest.fixture
def hub(monkeypatch):
    """What the Hub holds, by the path and the name that lm-eval asks for."""
    held = {}

    def load(path, name=None, **_):
        if path not in held:
            raise ConnectionError(f"Couldn't reach {path!r}")
        return DatasetDict({k: Dataset.from_list(rows) for k, rows in held[path](name).items()})

    monkeypatch.setattr("datasets.load_dataset", load)
    return held


def mmlu(subject):
    rows = [
        {"question": question, "choices": ["a", "b", "c", "d"], "answer": i % 4}
        for i, question in enumerate(QUESTIONS)
    ]
    return {"test": rows[: 8 if subject == "virology" else 2], "dev": rows}


def piqa(_):
    rows = [
        {"goal": question, "sol1": choices[0], "sol2": choices[1], "label": 0}
        for question, choices in QUESTIONS.items()
    ]
    return dict.fromkeys(("train", "validation"), rows)


def test_a_task_of_lm_eval(tiny, hub):
    hub["baber/piqa"] = piqa
    check_choices(["piqa"])
    found = measure_choices(tiny, ["piqa"])
    expected = []
    for question, choices in QUESTIONS.items():
        first = scores(tiny, question, choices[:2])
        expected.append(
            [first.argmax() == 0, (first / [len(c) for c in choices[:2]]).argmax() == 0]
        )
    plain, normalised = 100 * np.mean(expected, axis=0)
    assert found["PIQA"].value == plain and found["PIQA, length-normalised"].value == normalised


def test_a_group_of_lm_eval(tiny, hub):
    """MMLU's average is over questions, not over subjects; it has no normalised accuracy."""
    hub["cais/mmlu"] = mmlu
    found = measure_choices(tiny, ["mmlu"])
    parts = [found[f"mmlu_{name}"] for name in ("stem", "other", "social_sciences", "humanities")]
    assert len(found) == 5 and len({part.examples for part in parts}) == 4
    assert found["MMLU"].examples == sum(part.examples for part in parts) == 56 * 2 + 8
    total = sum(part.value * part.examples for part in parts)
    assert found["MMLU"].value == pytest.approx(total / 120)
    found = measure_choices(tiny, ["mmlu"], limit=2, shots=0)  # of 57 subjects, 4 groups
    assert found["MMLU"].examples == 2 and len(found) <= 3


def test_shots_are_solved_examples(tiny, hub, asked):
    hub["cais/mmlu"] = mmlu
    for shots in (0, 5):
        found = measure_choices(tiny, ["mmlu_virology"], shots=shots)
        assert found["mmlu_virology"].value == 25  # two of eight have the first choice
        assert len(asked[-1]) == 8 * 4
        for context, _ in asked[-1]:
            assert context.endswith("Answer:") and context.count("Answer:") == shots + 1
            assert context.count("Answer: ") == shots


def test_names_that_lm_eval_or_the_hub_do_not_have(hub):
    with pytest.raises(ConnectionError, match="arc_easy is not in the cache.*Couldn't reach"):
        check_choices(["arc_easy"])
    with pytest.raises(
        ValueError, match="'arc_hasty' is no task that lm-eval has.*: give a .jsonl"
    ):
        check_choices(["arc_hasty"])
    choices = {"text": ["It rains.", "It sleeps.", "It counts."], "label": ["A", "B", "C"]}
    rows = [{"question": "What does a cat do?", "choices": choices, "answerKey": "B"}]
    hub["allenai/ai2_arc"] = lambda _: dict.fromkeys(("train", "validation", "test"), rows)
    check_choices(["arc_easy"])
    with pytest.raises(ValueError, match="'arc_challenge_chat' is a task of generate_until: give"):
        check_choices(["arc_challenge_chat"])


GOOD = '{"question": "Who?", "choices": ["A", "B"], "answer": 1}'


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is empty: give one question per line"),
        ("{\n", "line 1: got '{', expected JSON with question, choices and answer"),
        (GOOD + "\n\n" + GOOD, "line 2: got '', expected JSON"),
        ('["Who?"]', "line 1: got .* expected JSON with"),
        ('{"question": "Who?", "choices": ["A", "B"]}', "line 1: got .* expected JSON with"),
        (GOOD.replace("Who?", " "), "line 1: the question is ' ', expected text"),
        (GOOD.replace(', "B"', ""), r"the choices are \['A'\], expected two texts or more"),
        (GOOD.replace('"B"', '""'), r"the choices are \['A', ''\], expected two texts or more"),
        (GOOD.replace('["A", "B"]', '"AB"'), "the choices are 'AB', expected two texts or more"),
        (GOOD + "\n" + GOOD.replace("1", "2"), "line 2: the answer is 2, expected an index from 0 to 1"),
        (GOOD.replace("1", '"B"'), "the answer is 'B', expected an index"),
        (GOOD.replace("1", "true"), "the answer is True, expected an index"),
        (GOOD.replace("1", "-1"), "the answer is -1, expected an index"),
    ],
)  # fmt: skip
def test_a_file_that_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        check_choices([str(path)])


def test_sources_that_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "piqa.jsonl", [0] * 8)
    check_choices([path])
    with pytest.raises(ValueError, match="two sources have the name 'PIQA'"):
        check_choices([path, "piqa"])
    with pytest.raises(ValueError, match=r"gone.jsonl is not a file: give a .jsonl file"):
        check_choices([str(tmp_path / "gone.jsonl")])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[eval\]"'):
        check_choices([path])
