"""The YAML config, command-line overrides and the schedule."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import SENTENCES, make_model

from modeling_magnet.training.arguments import ALL_LINEAR, DataArguments, MagnetTrainingArguments
from modeling_magnet.training.base import linear_layers
from modeling_magnet.training.from_arguments import check_arguments
from modeling_magnet.training.train import parse, train

CONFIGS = Path("training/configs")
PAPER, SMOLLM2 = CONFIGS / "paper-llama-2-7b.yaml", CONFIGS / "smollm2-135m.yaml"
RECIPES = {path.stem: [path] for path in (PAPER, SMOLLM2, CONFIGS / "quickstart.yaml")}
RECIPES |= {
    name: [PAPER, CONFIGS / f"{name}.yaml"] for name in ("paper-slimpajama", "llama-3-8b", "qlora")
}
RECIPES |= {
    path.stem: [SMOLLM2, path]
    for path in (
        *(CONFIGS / "ablations").glob("*.yaml"),
        *(
            CONFIGS / f"{name}.yaml"
            for name in (
                "smollm2-135m-cpu",
                "released-text",
                "released-pairs",
                "second-release",
                "first-release",
                "llm2vec-mntp",
                "llm2vec-simcse",
                "keep-generation",
            )
        ),
    )
}
RECIPES["released-all"] = [*RECIPES["released-pairs"], CONFIGS / "released-all.yaml"]
RECIPES |= {
    name: [SMOLLM2, CONFIGS / "released-text.yaml", CONFIGS / f"{name}.yaml"]
    for name in ("text-gpu", "every-length")
}
RECIPES["matryoshka"] = [*RECIPES["released-all"], CONFIGS / "matryoshka.yaml"]
RECIPES["distilled"] = [*RECIPES["released-pairs"], CONFIGS / "distilled.yaml"]
RECIPES["distilled-all"] = [
    *RECIPES["distilled"],
    *(CONFIGS / f"{name}.yaml" for name in ("released-all", "distilled-all")),
]
"""Each config, after those that its head says it goes over."""


def recipe(name: str):
    return pytest.param([str(path) for path in RECIPES[name]], id=name)


def test_every_config_is_tried():
    assert {path for paths in RECIPES.values() for path in paths} == set(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("paths", map(recipe, sorted(RECIPES)))
def test_every_config_parses_and_the_command_line_wins(paths, tmp_path):
    model, data, args = parse([*paths, "--use_cpu", "--lora_r", "3", "--output_dir", str(tmp_path)])
    assert model.lora_r == 3
    assert args.max_steps == sum(phase["steps"] for phase in args.objective_schedule)
    assert isinstance(data.text, list) and isinstance(data.pairs, list)
    check_arguments((model, data, args))


@pytest.mark.parametrize("paths", map(recipe, sorted(RECIPES)))
def test_every_config_trains(paths, run, corpus):
    """The recipe as it is, with tiny files, a tiny base and a step a phase in place of the real."""
    arguments = run()
    size = {
        "model": arguments[0].model, "mask_token": "_", "start_token": "<s>", "document_column": None,
        "text_config": None, "block_length": 40, "max_span_length": 8, "validation_blocks": 4,
        "validation_pair_count": 4, "token_cache": str(corpus / "tokens"), "eval_steps": 1,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "output_dir": str(corpus / "recipe"), "group_column": None, "optim": "adamw_torch",
        "adapter": None, "compile_layers": False, "dataloader_num_workers": 0, "max_gap_length": 64,
        "dataloader_prefetch_factor": None,
    }  # fmt: skip
    _, data, args = parse([*paths, "--use_cpu"])
    for name, value in {
        "text": arguments[1].text, "pairs": arguments[1].pairs,
        "validation_text": arguments[1].text, "validation_pairs": arguments[1].pairs,
    }.items():  # fmt: skip
        if getattr(data, name):
            size[name] = value
    size["per_device_train_batch_size"] = min(4, args.per_device_train_batch_size)
    size |= {"matryoshka_layers": [1] * bool(args.matryoshka_layers)}
    size |= {"matryoshka_dims": [8] * bool(args.matryoshka_dims)}
    size["pairs_per_block"] = min(2, data.pairs_per_block)
    size["objective_schedule"] = [phase | {"steps": 1} for phase in args.objective_schedule]
    size["max_steps"] = len(args.objective_schedule)
    (corpus / "size.yaml").write_text(yaml.safe_dump(size))
    arguments = parse([*paths, str(corpus / "size.yaml")])
    if arguments[0].load_in_4bit:  # its kernels take rows in whole blocks
        pytest.importorskip("bitsandbytes")
        base = make_model(hidden_size=64, intermediate_size=128)
        base.save_pretrained(arguments[0].model)
    model = train(arguments)
    assert np.isfinite(model.encode(SENTENCES)).all()
    assert (corpus / "recipe" / "results.md").exists()


def test_the_defaults_are_the_paper_s():
    """Appendix A."""
    model, data, args = parse([])
    assert (model.lora_r, model.lora_alpha, model.mask_token) == (16, 32, "_")
    llama = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (model.lora_target_modules, linear_layers(make_model())) == (ALL_LINEAR, llama)
    assert (data.block_length, data.pair_length, data.mask_fraction) == (512, 128, 0.2)
    assert (data.max_spans, data.min_span_length, data.max_span_length) == (2, 4, 128)
    assert (args.per_device_train_batch_size, data.pairs_per_block) == (32, 2)
    assert (args.learning_rate, args.temperature, args.max_steps) == (3e-5, 0.1, 4200)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
    rest = {"ntp": 0, "divergence": 0, "cosent": 0, "supcon": 0, "distil": 0}
    assert args.objective_weights(3399) == {"mntp": 1, "sscl": 0, "msg": 1} | rest
    assert args.objective_weights(3400) == {"mntp": 1, "sscl": 9, "msg": 1} | rest
    assert args.objective_weights(4199) == {"mntp": 1, "sscl": 9, "msg": 1} | rest


@pytest.mark.parametrize(("steps", "phases"), [(42, [34, 8]), (8400, [6800, 1600]), (1, [1, 1])])
def test_max_steps_scales_the_phases(tmp_path, steps, phases):
    args = MagnetTrainingArguments(output_dir=str(tmp_path), max_steps=steps)
    assert [phase["steps"] for phase in args.objective_schedule] == phases
    assert args.max_steps == sum(phases)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective_schedule": [{"steps": 0, "mntp": 1}]}, "steps"),
        ({"objective_schedule": [{"steps": 3, "mtnp": 1}]}, "mtnp"),
        ({"objective_schedule": [{"steps": 3, "mntp": -1}]}, "0 or more"),
        ({"objective_schedule": [{"steps": 3, "mntp": 0}]}, "at least one above 0"),
        ({"auto_find_batch_size": True}, "the batch size decides"),
        ({"train_sampling_strategy": "random"}, "the run's order"),
        ({"logging_nan_inf_filter": True}, "stops the run"),
        ({"hub_strategy": "every_save"}, "uploaded once"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        MagnetTrainingArguments(output_dir=str(tmp_path), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pair_columns": []}, "pair_columns"),
        ({"score_column": "s", "pair_columns": ["a", "b", "c"]}, "is of two texts: give two"),
        ({"mask_fraction": 1.2}, "mask_fraction is 1.2"),
        ({"block_length": 0}, "block_length is 0"),
        ({"max_span_length": 2}, "must not be shorter"),
        ({"label_column": "l"}, r"a class \(l\) is of one text"),
        (
            {"label_column": "l", "group_column": "g", "pair_columns": ["a"]},
            "leave out group_column",
        ),
        ({"vector_columns": ["v"]}, "give one column of vectors per column of texts"),
    ],
)
def test_bad_data_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"all_span_fraction": 0.5}, "need each other"),
        ({"objective_schedule": [{"steps": 1, "ntp": 1}]}, "need each other"),
        (
            {
                "objective_schedule": [{"steps": 1, "divergence": 1}],
                "all_span_fraction": 0.5,
                "lora_r": 0,
            },
            "set lora_r",
        ),
        ({"pairs_per_block": 0}, "set pairs, pairs_per_block"),
        ({"text": []}, "set text"),
        ({"pair_columns": ["sentence"]}, "dropout"),
        ({"score_column": "score"}, "sscl has a weight, but score_column is score"),
        ({"objective_schedule": [{"steps": 1, "cosent": 1}]}, "score_column is None: cosent works"),
        (
            {"label_column": "label", "pair_columns": ["sentence"]},
            "supcon is all 0, and label_column",
        ),
        (
            {"objective_schedule": [{"steps": 1, "supcon": 1}]},
            "not all 0, and label_column is None",
        ),
        (
            {
                "objective_schedule": [{"steps": 1, "distil": 1}],
                "vector_columns": ["sentence_vector", "paraphrase_vector"],
            },
            "set projection_head: false",
        ),
        (
            {"guide_margin": 0.1},
            "guide_margin is 0.1, but works only for sscl on pairs with a guide's",
        ),
        ({"objective_schedule": [{"steps": 1, "distil": 1}]}, "vector_columns is empty: name the"),
        (
            {
                "pair_columns": ["sentence"],
                "vector_columns": ["sentence_vector"],
                "objective_schedule": [{"steps": 1, "distil": 1, "sscl": 1}],
                "projection_head": False,
            },
            "sscl needs two columns",
        ),
        (
            {"vector_columns": ["sentence_vector", "paraphrase_vector"]},
            "nothing reads them: give distil a weight, or set guide_margin",
        ),
    ],
)
def test_arguments_that_do_not_fit_each_other(run, flags, message):
    with pytest.raises(ValueError, match=message):
        check_arguments(run(**flags))


def test_later_configs_win_over_earlier_ones(tmp_path):
    for name, content in (("a", "seed: 1\nlora_r: 2\n"), ("b", "seed: 3\ntext: one.txt\n")):
        (tmp_path / f"{name}.yaml").write_text(content)
    model, data, args = parse([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])
    assert (model.lora_r, args.seed, data.text) == (2, 3, ["one.txt"])


def test_unknown_keys_and_flags(tmp_path):
    (tmp_path / "c.yaml").write_text("leraning_rate: 1\n")
    with pytest.raises(ValueError, match="leraning_rate"):
        parse([str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit):
        parse(["--leraning_rate", "1"])
