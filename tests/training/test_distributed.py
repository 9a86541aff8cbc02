"""One process, two and four, DDP and FSDP2, on gloo: the same losses and the same parameters."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from processes import run as run_alone
from processes import run_in
from safetensors.torch import load_file

MIXED = [
    {"steps": 2, "mntp": 1, "msg": 1},
    {"steps": 4, "mntp": 1, "sscl": 2, "msg": 1, "ntp": 1, "divergence": 1},
]
"""All objectives, the contrastive one over the batch of all processes."""

TEXT = [{"steps": 6, "mntp": 1, "msg": 1}]
"""Without the contrastive one, whose negatives are those of one accumulated batch."""


@pytest.fixture
def launch(run, corpus):
    """Train with so many processes; gives the losses of each step and the adapter's weights."""

    def trained(runs: dict[str, dict], processes: int = 1, sharded: str | None = None):
        configs = []
        for name, changes in runs.items():
            changes = {"output_dir": str(corpus / name), "use_cpu": not sharded} | changes
            if "objective_schedule" not in changes:
                changes["objective_schedule"] = MIXED
            if changes["objective_schedule"] is MIXED:
                changes["all_span_fraction"] = 0.25
            run(**changes)
            configs.append(corpus / f"{name}.yaml")
            (corpus / "config.yaml").rename(configs[-1])
        command = ["-m", "tests.training.worker", *([sharded] if sharded else []), *configs]
        if processes > 1:
            run_in(processes, *command)
        else:
            done = run_alone(*command)
            assert done.returncode == 0, done.stderr[-3000:]
        results = []
        for name in runs:
            curves = json.loads((corpus / name / "results.json").read_text())["curves"]
            weights = load_file(corpus / name / "adapter" / "adapter_model.safetensors")
            results.append((curves, weights))
        return results

    return trained


def assert_same(result, expected):
    (curves, weights), (expected_curves, expected_weights) = result, expected
    assert curves.keys() == expected_curves.keys() and len(curves["mntp"]) == 6
    for name, points in curves.items():
        assert [step for step, _ in points] == [step for step, _ in expected_curves[name]]
        values, wanted = ([value for _, value in p] for p in (points, expected_curves[name]))
        assert values == pytest.approx(wanted, abs=1e-5, rel=1e-5), name
    assert weights.keys() == expected_weights.keys() and len(weights) > 10
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], atol=1e-5, rtol=0)


EVALUATED = {
    "eval_strategy": "steps", "eval_steps": 3, "optim": "sgd", "learning_rate": 0.05,
    "cut_blocks": [1, 2, 4],
}  # fmt: skip
"""Steps of several lengths. SGD shows the gradient as it is; AdamW makes a step of each rounding where the gradient is 0."""


NEGATIVES = {"pair_columns": ["sentence", "paraphrase", "negative", "other"], "pair_chunk": 3}
SCORED = {
    "score_column": "score",
    "objective_schedule": [{"steps": 6, "mntp": 1, "msg": 1, "cosent": 1}],
}
TAUGHT = {
    "vector_columns": ["sentence_vector", "paraphrase_vector"],
    "guide_margin": 0.1,
    "projection_head": False,
    "objective_schedule": [{"steps": 6, "mntp": 1, "msg": 1, "sscl": 1, "distil": 1}],
}
CLASSES = {
    "pair_columns": ["sentence"],
    "label_column": "label",
    "objective_schedule": [{"steps": 6, "mntp": 1, "msg": 1, "supcon": 1}],
}
MATRYOSHKA = {
    "matryoshka_dims": [8, 16, 32],
    "matryoshka_layers": [1],
    "projection_head": False,
    "objective_schedule": [{"steps": 6, "mntp": 1, "msg": 1, "sscl": 2}],
}
"""Labelled pairs: two hard negatives each, in chunks; with scores; with vectors of a teacher and guide; classes; and widths and layers."""

ONE: list = []


@pytest.fixture
def one(launch):
    """One process on all eight items: the run to compare with, made once."""
    if not ONE:
        more = {"text": {"objective_schedule": TEXT}, "negatives": NEGATIVES, "scored": SCORED}
        more |= {"taught": TAUGHT | {"pair_chunk": 3}, "classes": CLASSES | {"pair_chunk": 3}}
        more["matryoshka"] = MATRYOSHKA | {"pair_chunk": 3}
        accumulated = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        more["accumulated"] = more["text"] | accumulated
        ONE.extend(
            launch({"one": EVALUATED} | {f"one-{k}": EVALUATED | v for k, v in more.items()})
        )
    return ONE


def of(processes, **changes):
    return EVALUATED | {"per_device_train_batch_size": 8 // processes} | changes


def test_two_processes_are_one_and_so_is_accumulation(launch, one):
    """1 x 8, 2 x 4, and 2 processes x 2 x 2 accumulated, each with all objectives that it can have."""
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    two, two_by_two, negatives, scored, taught, classes, matryoshka = launch(
        {
            "two": of(2),
            "two-by-two": of(2, objective_schedule=TEXT, **accumulated),
            "two-negatives": of(2, **NEGATIVES | {"pair_chunk": 0}),
            "two-scored": of(2, **SCORED),
            "two-taught": of(2, **TAUGHT),
            "two-classes": of(2, **CLASSES),
            "two-matryoshka": of(2, **MATRYOSHKA),
        },
        processes=2,
    )
    assert_same(two, one[0])
    assert_same(two_by_two, one[1])
    assert_same(one[7], one[1])
    assert_same(negatives, one[2])
    assert_same(scored, one[3])
    assert_same(taught, one[4])
    assert_same(classes, one[5])
    assert len(classes[0]["supcon"]) == 6 and len(classes[0]["eval_class_accuracy"]) == 2
    assert_same(matryoshka, one[6])
    assert len(matryoshka[0]["matryoshka"]) == 6
    assert len(taught[0]["distil"]) == 6 and len(taught[0]["eval_teacher_spearman"]) == 2
    assert len(scored[0]["cosent"]) == 6 and len(scored[0]["eval_pair_spearman"]) == 2


def test_fsdp2_on_four_processes_is_one(launch, one):
    (four,) = launch({"four": of(4)}, processes=4, sharded="--fsdp")
    assert_same(four, one[0])


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("sharded", ["--zero2", "--zero3"])
def test_deepspeed_on_two_processes_is_one(launch, one, sharded):
    (two,) = launch({sharded.strip("-"): of(2)}, processes=2, sharded=sharded)
    assert_same(two, one[0])


@pytest.mark.parametrize(
    "path", sorted(Path("training/accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_accelerate_reads_its_configs(path):
    """Unknown and missing keys are errors there."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= 8
    content = yaml.safe_load(path.read_text())
    assert config.distributed_type == content["distributed_type"]
