"""`MagnetTrainer` from a notebook: datasets in memory, objectives by their columns, errors that say which."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from peft import LoraConfig
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import pairwise_cos_sim
from test_model import add_lora
from tiny import SENTENCES, make_model
from transformers import LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM, load_magnet
from modeling_magnet.training import MagnetConfig, MagnetTrainer
from modeling_magnet.training.arguments import DataArguments, ModelArguments
from modeling_magnet.training.card import TEMPLATE
from modeling_magnet.training.columns import pairs_of, recognize
from modeling_magnet.training.metrics import spearman
from modeling_magnet.training.objectives import (
    cosent,
    distillation,
    false_negatives,
    info_nce,
    supervised_contrastive,
)

ROOT = Path(__file__).parents[2]
TEXT = Dataset.from_dict(
    {"text": [" ".join(SENTENCES[i % 5 :] + SENTENCES[: i % 5]) for i in range(20)] + ["", None]}
)
TRIPLETS = Dataset.from_dict(
    {
        "anchor": [f"{i} {a}" for i, a in enumerate(SENTENCES)] * 2,
        "positive": [a.lower() for a in SENTENCES] * 2,
        "negative_1": [a[::-1] for a in SENTENCES] * 2,
        "negative_2": [a.upper() for a in SENTENCES] * 2,
    }
)
SCORED = Dataset.from_dict(
    {
        "sentence1": SENTENCES * 2,
        "sentence2": [a[: 10 * i] + a[:9] for i, a in enumerate(SENTENCES * 2)],
        "score": [i / 9 for i in range(10)],
    }
)
TAUGHT = Dataset.from_dict(
    {
        "text": [f"{i} {a}" for i, a in enumerate(SENTENCES * 2)],
        "vector": np.random.default_rng(0).normal(size=(10, 7)).tolist(),
    }
)
CLASSED = Dataset.from_dict(
    {"text": TAUGHT["text"], "label": ["cat", "dog", "cat", "dog", "cat"] * 2}
)
TAUGHT_PAIRS = (
    TRIPLETS.select_columns(["anchor", "positive"])
    .add_column("anchor_vector", TAUGHT["vector"][:])
    .add_column("positive_vector", TAUGHT["vector"][::-1])
)
QUIET = {
    "block_length": 40, "max_span_length": 8, "per_device_train_batch_size": 5, "learning_rate": 5e-3,
    "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
    "disable_tqdm": True, "max_steps": 4, "lr_scheduler_type": "constant",
}  # fmt: skip
LORA = LoraConfig(r=4, target_modules="all-linear")


def changed(data: Dataset, column: str, row: int, value) -> Dataset:
    values = list(data[column])
    values[row] = value
    return data.remove_columns(column).add_column(column, values).select_columns(data.column_names)


def config(tmp_path, **changes) -> MagnetConfig:
    return MagnetConfig(output_dir=str(tmp_path / "run"), **(QUIET | changes))


def logged(trainer, name) -> list[float]:
    return [float(line[name]) for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize(
    ("data", "objectives"),
    [
        (TEXT, {"mntp", "msg"}),
        (TRIPLETS, {"sscl"}),
        (TRIPLETS.select_columns(["anchor", "positive"]), {"sscl"}),
        (TRIPLETS.rename_columns({"anchor": "question", "positive": "answer"}), {"sscl"}),
        (TRIPLETS.add_column("id", range(10)), {"sscl"}),
        (SCORED, {"cosent"}),
        (SCORED.rename_column("score", "label"), {"cosent"}),
        (TAUGHT, {"distil"}),
        (TAUGHT.rename_columns({"text": "sentence", "vector": "label"}), {"distil"}),
        (TAUGHT_PAIRS, {"sscl", "distil"}),
        (changed(TAUGHT, "vector", slice(None), np.eye(10, dtype=int).tolist()), {"distil"}),
        (CLASSED, {"supcon"}),
        (CLASSED.cast_column("label", ClassLabel(names=["cat", "dog"])), {"supcon"}),
        (CLASSED.remove_columns("label").add_column("label", [7, 8] * 5), {"supcon"}),
        (CLASSED.add_column("vector", TAUGHT["vector"]), {"supcon", "distil"}),
        ({"wiki": TEXT, "nli": TRIPLETS}, {"mntp", "msg", "sscl"}),
        ({"wiki": TEXT, "sts": SCORED}, {"mntp", "msg", "cosent"}),
        ({"wiki": TEXT, "teacher": TAUGHT}, {"mntp", "msg", "distil"}),
    ],
)
def test_the_columns_choose_the_objectives(data, objectives, tmp_path):
    args = config(tmp_path, max_steps=1, per_device_train_batch_size=4)
    trainer = MagnetTrainer(make_model(), args, train_dataset=data, peft_config=LORA)
    trainer.train()
    names = {"mntp", "msg", "ntp", "sscl", "cosent", "supcon", "distil"}
    assert {name for name in names if logged(trainer, name)} == objectives


@pytest.mark.parametrize("data", [TRIPLETS, SCORED, TAUGHT, CLASSED])
def test_labelled_pairs_are_learned(data, tmp_path):
    changes = {"per_device_train_batch_size": 10, "other_prompt_fraction": 0, "learning_rate": 1e-3}
    args = config(tmp_path, max_steps=6, **changes)
    trainer = MagnetTrainer(make_model(), args, train_dataset=data, peft_config=LORA)
    trainer.train()
    first, *_, last = logged(trainer, "loss")
    assert last < 0.9 * first


@pytest.mark.parametrize("peft_config", [LORA, None])
def test_what_is_saved_loads_as_what_was_trained(peft_config, tmp_path):
    """An adapter with the base's place, or the whole folder; the caller's model is trained in place."""
    make_model().save_pretrained(tmp_path / "base")
    trainer = MagnetTrainer(
        str(tmp_path / "base"), config(tmp_path), train_dataset=TRIPLETS, peft_config=peft_config
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "mine"))
    trainer.train()  # saving leaves the model in training
    trainer.save_model(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "adapter_config.json").exists() == (peft_config is not None)
    tuned = load_magnet(tmp_path / "mine")
    vectors = trainer.model.eval().encode(SENTENCES)
    np.testing.assert_allclose(tuned.encode(SENTENCES), vectors, atol=1e-5)
    assert abs(vectors - make_model().encode(SENTENCES)).max() > 0.01
    assert len(tuned.infill("The", " sat.", span_length=2)) >= 0


def test_a_model_s_own_adapter_is_trained_on(tmp_path):
    """As the released checkpoint is: an adapter on a base, and an adapter on that base again."""
    make_model().save_pretrained(tmp_path / "base")
    first = MagnetTrainer(
        str(tmp_path / "base"), config(tmp_path), train_dataset=TRIPLETS, peft_config=LORA
    )
    first.train()
    first.save_model(str(tmp_path / "first"))
    second = MagnetTrainer(str(tmp_path / "first"), config(tmp_path), train_dataset=TRIPLETS)
    trained = {name for name, weight in second.model.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    second.train()
    second.save_model(str(tmp_path / "second"))
    assert not list((tmp_path / "second").glob("model*.safetensors"))
    one, two = (load_magnet(tmp_path / name) for name in ("first", "second"))
    vectors = second.model.eval().encode(SENTENCES)
    np.testing.assert_allclose(two.encode(SENTENCES), vectors, atol=1e-5)
    assert abs(vectors - one.encode(SENTENCES)).max() > 0.01
    with pytest.raises(
        ValueError, match="leave out peft_config to train that adapter further, or merge it"
    ):
        MagnetTrainer(one, config(tmp_path), train_dataset=TRIPLETS, peft_config=LORA)


@pytest.mark.parametrize("kind", ["new adapter", "own adapter", "all weights"])
def test_a_run_resumes_to_the_same_weights(kind, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    if kind == "own adapter":
        add_lora(load_magnet(tmp_path / "model")).save_pretrained(tmp_path / "adapter")
    place = str(tmp_path / ("adapter" if kind == "own adapter" else "model"))

    def trainer():
        args = config(tmp_path, save_strategy="steps", save_steps=2)
        peft_config = LORA if kind == "new adapter" else None
        return MagnetTrainer(place, args, train_dataset=TRIPLETS, peft_config=peft_config)

    whole, resumed = trainer(), trainer()
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed.train(resume_from_checkpoint=True)
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_class_that_auto_model_has_registered_trains(tmp_path, monkeypatch):
    """As it does when it loads a released adapter, whose class is the package's."""
    monkeypatch.setattr(MagnetLlamaForCausalLM, "_auto_class", "AutoModel")
    make_model().save_pretrained(tmp_path / "model")
    arguments = config(tmp_path, save_strategy="steps", save_steps=2)
    trainer = MagnetTrainer(str(tmp_path / "model"), arguments, train_dataset=TRIPLETS)
    trainer.train()
    assert not list((tmp_path / "run" / "checkpoint-4").glob("*.py"))
    trainer.save_model(str(tmp_path / "trained"))
    assert load_magnet(tmp_path / "trained").encode("A cat.").ndim == 1


def test_a_plain_base_gets_a_start_token_that_is_measured_on_the_text(tmp_path):
    base = make_model()
    plain = LlamaForCausalLM(base.config)
    plain.load_state_dict(base.state_dict())
    plain.save_pretrained(tmp_path / "plain")
    base.tokenizer.save_pretrained(tmp_path / "plain")
    trainer = MagnetTrainer(str(tmp_path / "plain"), config(tmp_path), train_dataset=TEXT)
    assert trainer.model.config.magnet["trained_length"] == 40
    assert trainer.model.config.magnet["start_token_id"] in (None, 0, 1, 2)
    named = MagnetTrainer(
        str(tmp_path / "plain"), config(tmp_path, start_token="</s>"), train_dataset=TRIPLETS
    )
    assert named.model.config.magnet["start_token_id"] == 1
    assert named.model.config.magnet["trained_length"] is None


def test_epochs_count_pairs_and_blocks(tmp_path):
    args = config(tmp_path, max_steps=-1, num_train_epochs=2)
    trainer = MagnetTrainer(make_model(), args, train_dataset=TRIPLETS)
    assert trainer.args.max_steps == 4 and len(trainer.train_dataset) == 20  # 2 x 10 pairs by 5
    assert {trainer.train_dataset[i].pairs[0] for i in range(10)} == {
        tuple(row.values()) for row in TRIPLETS
    }


def test_what_is_held_out_is_measured(tmp_path):
    held_out = {"a": TEXT, "b": SCORED.select(range(10)).repeat(10)}
    args = config(tmp_path, per_device_eval_batch_size=4)
    trainer = MagnetTrainer(make_model(), args, train_dataset=SCORED, eval_dataset=held_out)
    found = trainer.evaluate()
    one, two = (
        trainer.model.encode(SCORED[name][:], normalize_embeddings=True)
        for name in ("sentence1", "sentence2")
    )
    expected = spearman((one * two).sum(1), np.array(SCORED["score"][:]))
    assert found["eval_span_perplexity"] > 1
    assert found["eval_pair_spearman"] == pytest.approx(expected, abs=0.05)  # of the pairs that fit


def test_how_well_classes_are_told_apart_is_measured(tmp_path):
    args = config(tmp_path, per_device_train_batch_size=4, per_device_eval_batch_size=10)
    trainer = MagnetTrainer(make_model(), args, train_dataset=CLASSED, eval_dataset=CLASSED)
    found = trainer.evaluate()["eval_class_accuracy"]
    own = trainer.model.encode(CLASSED["text"][:], normalize_embeddings=True)
    nearest = (own @ own.T - 2 * np.eye(10)).argmax(axis=1)
    labels = np.array(CLASSED["label"][:])
    assert found == pytest.approx((labels[nearest] == labels).mean(), abs=0.11)


def test_how_far_the_teacher_is_followed_is_measured(tmp_path):
    args = config(tmp_path, per_device_eval_batch_size=4)
    trainer = MagnetTrainer(make_model(), args, train_dataset=TAUGHT, eval_dataset=TAUGHT)
    found = trainer.evaluate()["eval_teacher_spearman"]
    upper = np.triu_indices(10, 1)
    own = trainer.model.encode(TAUGHT["text"][:], normalize_embeddings=True)
    taught = np.array(TAUGHT["vector"][:])
    taught /= np.linalg.norm(taught, axis=1, keepdims=True)
    expected = spearman((own @ own.T)[upper], (taught @ taught.T)[upper])
    assert found == pytest.approx(expected, abs=0.02)


def test_vectors_belong_to_the_texts_that_they_are_named_after():
    columns = ["positive_vector", "anchor", "anchor_vector", "positive"]
    part = recognize(TAUGHT_PAIRS.select_columns(columns), "x")["pairs"]
    np.testing.assert_allclose(
        pairs_of(part, "x").vectors(3),
        [TAUGHT_PAIRS[3]["anchor_vector"], TAUGHT_PAIRS[3]["positive_vector"]],
        atol=1e-6,
    )


def test_the_wheel_holds_every_package_and_no_default_is_a_path_of_the_checkout():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^packages = (\[.+\])$", text, re.MULTILINE)[1]
    folders = {path.parent for path in (ROOT / "modeling_magnet").rglob("__init__.py")}
    assert set(json.loads(listed)) == {
        ".".join(folder.relative_to(ROOT).parts) for folder in folders
    }
    card = TEMPLATE.relative_to(ROOT / "modeling_magnet" / "training")
    assert f'package-data = {{ "modeling_magnet.training" = ["{card}"] }}' in text
    for part in (ModelArguments(), DataArguments(), MagnetConfig(report_to="none")):
        strings = str(vars(part))
        assert not re.findall(r"examples/|checkpoints/|training/", strings)


def test_spearman_is_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    one, two = np.array([3.0, 1, 2, 2, 5]), np.array([0.1, 0.1, 0.4, 0.3, 0.9])
    assert spearman(one, two) == pytest.approx(stats.spearmanr(one, two).statistic)


# The losses, against those of sentence-transformers on the same vectors.


class Vectors(torch.nn.Module):
    """Stands for a SentenceTransformer whose features are the vectors already."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_contrastive_is_multiple_negatives_ranking(negatives):
    torch.manual_seed(0)
    views = torch.randn(2 + negatives, 6, 8, requires_grad=True)  # (views, pairs, hidden)
    ours = info_nce(views[0], views[1:].flatten(0, 1), temperature=0.05)
    (gradient,) = torch.autograd.grad(ours, views)
    theirs = losses.MultipleNegativesRankingLoss(Vectors(), scale=20.0)
    expected = theirs([{"vectors": view} for view in views], None)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, views)[0])


def test_cosent_is_cosent():
    torch.manual_seed(0)
    views = torch.randn(2, 7, 8, requires_grad=True)
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.0, 1.0, 0.3])
    ours = cosent(views, scores, temperature=0.05)
    (gradient,) = torch.autograd.grad(ours, views)
    expected = losses.CoSENTLoss(Vectors(), scale=20.0)([{"vectors": v} for v in views], scores)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, views)[0])
    assert cosent(views, torch.ones(7), 0.05) == 0


def test_several_positives_by_definition():
    """Equation 2 of Khosla et al. 2020, text by text; the fifth is alone in its class."""
    torch.manual_seed(0)
    texts, classes = torch.randn(6, 8, requires_grad=True), [0, 1, 0, 0, 2, 1]
    ours = supervised_contrastive(texts, torch.tensor(classes), temperature=0.05)
    (gradient,) = torch.autograd.grad(ours, texts)
    terms = []
    for i in range(6):
        near = {
            j: torch.exp(torch.cosine_similarity(texts[i], texts[j], dim=0) / 0.05)
            for j in range(6)
            if j != i
        }
        positives = [j for j in near if classes[j] == classes[i]]
        if positives:
            shares = [torch.log(near[p] / sum(near.values())) for p in positives]
            terms.append(-sum(shares) / len(positives))
    expected = sum(terms) / len(terms)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, texts)[0])
    assert len(terms) == 5 and supervised_contrastive(texts, torch.arange(6), 0.05) == 0


class Guide(torch.nn.Sequential):
    """Stands for a SentenceTransformer with a tokenizer; its features hold the vectors of several."""

    tokenizer, max_seq_length = make_model().tokenizer, 9

    def __init__(self, name):
        super().__init__(torch.nn.Identity())
        self.name = name

    def forward(self, features):
        return {"sentence_embedding": features[self.name]}


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("negatives", [0, 2])
def test_false_negatives_are_those_of_gist(strategy, margin, negatives):
    torch.manual_seed(0)
    views = torch.randn(2 + negatives, 8, 6, requires_grad=True)  # (views, pairs, hidden)
    guide = torch.randn(2 + negatives, 8, 4) + 0.5
    left_out = false_negatives(guide, margin, strategy == "relative")
    assert 0 < left_out.sum() < left_out.numel() - 8
    ours = info_nce(views[0], views[1:].flatten(0, 1), 0.05, left_out)
    (gradient,) = torch.autograd.grad(ours, views)
    theirs = losses.CachedGISTEmbedLoss(
        Guide("own"), Guide("guide"), temperature=0.05, margin_strategy=strategy, margin=margin,
        contrast_anchors=False, contrast_positives=False,
    )  # fmt: skip
    expected = theirs.calculate_loss([[view] for view in views], [[view] for view in guide])
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, views)[0])


def test_distillation_is_the_divergence_of_each_text_s_similarities_to_the_others():
    """sentence-transformers computes it for a query and documents: each text is the query once."""
    torch.manual_seed(0)
    texts, teacher = torch.randn(6, 8, requires_grad=True), torch.randn(6, 5)
    ours = distillation(texts, teacher, temperature=0.05)
    (gradient,) = torch.autograd.grad(ours, texts)
    cosines = torch.nn.functional.cosine_similarity(teacher[:, None], teacher, dim=-1)
    rolled = [(torch.arange(6) + k) % 6 for k in range(6)]  # the query, then the others
    labels = torch.stack([cosines[torch.arange(6), other] for other in rolled[1:]], dim=1)
    theirs = losses.DistillKLDivLoss(Vectors(), similarity_fct=pairwise_cos_sim, temperature=0.05)
    expected = theirs([{"vectors": texts[order]} for order in rolled], labels)
    expected = expected / 0.05**2  # by which it multiplies the loss
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, texts)[0])
    turned, _ = torch.linalg.qr(torch.randn(9, 8))
    assert (
        distillation(texts, 3 * texts @ turned.T, 0.05) < 1e-5
    )  # the same angles in another space


@pytest.mark.parametrize(
    "data", [TRIPLETS, SCORED, CLASSED, TAUGHT_PAIRS, {"a": TEXT, "b": TRIPLETS}]
)
def test_a_chunked_batch_has_the_loss_and_the_parameters_of_the_whole(data, tmp_path):
    results = []
    guide = 0.1 if data is TAUGHT_PAIRS else None
    for chunk in (0, 3):
        changes = {
            "pair_chunk": chunk,
            "guide_margin": guide,
            "per_device_train_batch_size": 4,
            "optim": "sgd",
            "learning_rate": 0.1,
            "max_steps": 2,
        }
        trainer = MagnetTrainer(
            make_model(), config(tmp_path, **changes), train_dataset=data, peft_config=LORA
        )
        trainer.train()
        weights = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        results.append((logged(trainer, "loss"), weights))
    (whole, weights), (chunked, others) = results
    assert chunked == pytest.approx(whole, abs=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-5, rtol=0)


# Bad input.

CLASSES = Dataset.from_dict(
    {"premise": ["a"], "hypothesis": ["b"], "label": [1]},
    features=Features(
        {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(3)}
    ),
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            CLASSES,
            r"premise \(string\).*label \(ClassLabel\), which fit no objective: give one of these. `text`",
        ),
        (Dataset.from_dict({"tokens": [[1]]}), r"tokens \(list of int64\), which fit no obj"),
        (
            TAUGHT_PAIRS.remove_columns("anchor_vector"),
            r"positive_vector \(list of float64\), which",
        ),
        (
            changed(TAUGHT, "vector", 2, [1.0, 2.0]),
            "vector in row 2 of train_dataset has 2 numbers, but earlier ones have 7: .* one teacher",
        ),
        (changed(TAUGHT, "vector", 1, [float("nan")] * 7), "in row 1 of train_dataset holds NaN"),
        (changed(TAUGHT, "vector", 1, [0.0] * 7), "in row 1 of train_dataset is all zeros"),
        (changed(CLASSED, "label", 1, None), "row 1 of train_dataset has no label"),
        (
            CLASSED.cast_column("label", Value("binary")),
            r"label \(binary\), which fit no objective",
        ),
        (changed(TAUGHT, "vector", 1, None), "in row 1 of train_dataset is None: give a list"),
        (Dataset.from_dict({"anchor": ["a"]}), r"anchor \(string\), which fit no .*CoSENT"),
        (TRIPLETS.rename_column("anchor", "doc_id"), "doc_id .*fit no objective"),
        ({"a": TEXT, "b": TEXT}, "train_dataset has two datasets of text"),
        ({"a": TRIPLETS, "b": SCORED}, "two datasets of pairs"),
        ({}, "train_dataset holds no dataset: give one of these. `text`"),
        (
            changed(TRIPLETS, "negative_2", 3, TRIPLETS["positive"][3]),
            "row 3 of train_dataset: negative_2 is the same as positive .*dataset.filter",
        ),
        (changed(TRIPLETS, "negative_1", 4, ""), "row 4 of train_dataset: negative_1 blank"),
        (changed(SCORED, "score", 2, 4.2), "score in row 2 of train_dataset is 4.2: .* 0 to 1"),
        (changed(SCORED, "score", 2, float("nan")), "is nan: give numbers from 0 to 1"),
    ],
)
def test_data_that_cannot_be_used_is_refused_before_a_model_is_loaded(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        MagnetTrainer("no/model", config(tmp_path), train_dataset=data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train_dataset": [{"text": "a"}]}, TypeError, "train_dataset is list: give a datasets"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "model is Linear: give a folder, a Hub id"),
        ({"objective_schedule": [{"steps": 1, "mntp": 1}]}, ValueError, "mntp has a weight, but"),
        ({"objective_schedule": [{"steps": 1, "cosent": 1}]}, ValueError, "cosent .*only pairs"),
        ({"objective_schedule": [{"steps": 1, "distil": 1}]}, ValueError, "distil .*only pairs"),
        (
            {"guide_margin": 0.1},
            ValueError,
            "guide_margin is 0.1, but train_dataset has no pairs with",
        ),
        (
            {"train_dataset": TAUGHT, "per_device_train_batch_size": 2},
            ValueError,
            "a batch has 2 texts, but distil learns nothing from that",
        ),
        (
            {
                "train_dataset": TRIPLETS.select_columns(["anchor", "positive"]),
                "per_device_train_batch_size": 1,
            },
            ValueError,
            "a batch has 1 positives and negatives, but sscl learns nothing .* give 2 or more",
        ),
        (
            {"train_dataset": SCORED, "per_device_train_batch_size": 1},
            ValueError,
            "a batch has 1 pairs, but cosent learns nothing",
        ),
        (
            {"train_dataset": CLASSED, "per_device_train_batch_size": 2},
            ValueError,
            "a batch has 2 texts, but supcon learns nothing",
        ),
        (
            {"train_dataset": changed(CLASSED, "label", slice(None), ["cat"] * 10)},
            ValueError,
            "all 10 rows have the same class, but supcon",
        ),
        (
            {"train_dataset": changed(SCORED, "score", slice(None), [0.5] * 10)},
            ValueError,
            "all 10 rows have the same score, but cosent",
        ),
        ({"guide_margin": float("nan")}, ValueError, "guide_margin is nan: give 0 or more"),
        ({"guide_margin": -0.1}, ValueError, "guide_margin is -0.1: give 0 or more"),
        (
            {
                "guide_margin": 0.1,
                "train_dataset": TAUGHT_PAIRS,
                "objective_schedule": [{"steps": 1, "distil": 1}],
            },
            ValueError,
            "guide_margin is 0.1, but .* sscl, which has no weight",
        ),
        ({"matryoshka_dims": 8}, TypeError, "matryoshka_dims is 8: give a list"),
        ({"matryoshka_layers": [True]}, TypeError, "a number of matryoshka_layers is True"),
        ({"guide_margin_strategy": "x"}, ValueError, "is 'x': give absolute or relative"),
        (
            {"train_dataset": CLASSED, "per_device_train_batch_size": 5},
            ValueError,
            "5 texts with a class, which come in twos",
        ),
        (
            {"train_dataset": CLASSED.select([0, 1])},
            ValueError,
            "no two of 2 texts have the same class",
        ),
        ({"pair_length": 999}, ValueError, "pair_length is 999"),
        ({"data_collator": print}, ValueError, "data_collator is chosen by the columns"),
    ],
)
def test_bad_arguments(arguments, error, message, tmp_path):
    own = {"model": make_model(), "train_dataset": TRIPLETS}
    own |= {name: arguments.pop(name) for name in (*own, "data_collator") if name in arguments}
    with pytest.raises(error, match=message):
        MagnetTrainer(args=config(tmp_path, **arguments), **own)
