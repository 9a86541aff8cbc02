"""The YAML config, command-line overrides and the schedule."""

from pathlib import Path

import pytest

from training.arguments import MagnetTrainingArguments
from training.train import parse

CONFIGS = sorted(Path("training/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_the_command_line_wins(path, tmp_path):
    model, data, args = parse([str(path), "--lora_r", "3", "--output_dir", str(tmp_path)])
    assert model.lora_r == 3
    assert args.max_steps == sum(phase["steps"] for phase in args.objective_schedule)
    assert Path(data.blocks_file).suffix


def test_the_defaults_are_the_paper_s():
    """Appendix A."""
    model, data, args = parse([])
    assert (model.lora_r, model.lora_alpha, model.mask_token) == (16, 32, "_")
    assert (data.block_length, data.pair_length, data.mask_fraction) == (512, 128, 0.2)
    assert (data.max_spans, data.min_span_length, data.max_span_length) == (2, 4, 128)
    assert (args.per_device_train_batch_size, data.pairs_per_block) == (32, 2)
    assert (args.learning_rate, args.temperature, args.max_steps) == (3e-5, 0.1, 4200)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert args.objective_weights(3399) == {"mntp": 1, "sscl": 0, "msg": 1}
    assert args.objective_weights(3400) == {"mntp": 1, "sscl": 9, "msg": 1}
    assert args.objective_weights(4199) == {"mntp": 1, "sscl": 9, "msg": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective_schedule": [{"steps": 0, "mntp": 1}]}, "steps"),
        ({"objective_schedule": [{"steps": 3, "mtnp": 1}]}, "mtnp"),
        ({"objective_schedule": [{"steps": 3, "mntp": -1}]}, "0 or more"),
        ({"max_steps": 5000}, "ends after 4200 steps"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        MagnetTrainingArguments(output_dir=str(tmp_path), **arguments)


def test_unknown_keys_and_flags(tmp_path):
    (tmp_path / "c.yaml").write_text("leraning_rate: 1\n")
    with pytest.raises(ValueError, match="leraning_rate"):
        parse([str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit):
        parse(["--leraning_rate", "1"])
