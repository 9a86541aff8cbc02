"""Adapts a base model with MAGNET.

    python -m modeling_magnet.training.train training/configs/smollm2-135m.yaml
    python -m modeling_magnet.training.train training/configs/smollm2-135m.yaml --learning_rate 1e-4 --seed 1
    python -m modeling_magnet.training.train training/configs/smollm2-135m.yaml training/configs/ablations/mntp.yaml
    accelerate launch --config_file training/accelerate/ddp.yaml -m modeling_magnet.training.train CONFIG

Of several configs, later ones win. Writes under `output_dir`: `base/` (the base as a Magnet folder),
`adapter/` (LoRA only), `model/` (the merged Magnet folder), results and curves, and the run's
checkpoints. Run the command again after a kill: it resumes from the last complete checkpoint. A second
run in the same `output_dir` at the same time is refused.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from modeling_magnet import MagnetMixin

from .arguments import Arguments, DataArguments, MagnetTrainingArguments, ModelArguments
from .card import write_card
from .from_arguments import check_arguments, make_trainer
from .report import details_of, write_report
from .resume import claim, last_complete_checkpoint, run_lock
from .run_folders import push, save_run


def parse(command_line: list[str]) -> Arguments:
    """Read YAML configs, of which later ones win, and the command-line flags that override them.

    Args:
        command_line: paths of configs, then flags: `["mine.yaml", "--learning_rate", "1e-4"]`.

    Returns:
        What `train` takes: `ModelArguments`, `DataArguments`, `MagnetTrainingArguments`.

    Raises:
        SystemExit: an argument is unknown (argparse's message says which).
        ValueError: a config holds an unknown key.
    """
    classes: Any = (ModelArguments, DataArguments, MagnetTrainingArguments)
    parser = HfArgumentParser(classes)
    actions = {action.dest: action for action in parser._actions}
    config: dict = {}
    while command_line and not command_line[0].startswith("--"):
        path, *command_line = command_line
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        unknown = set(content) - set(actions)
        if unknown:
            raise ValueError(f"{path} holds unknown keys {sorted(unknown)}")
        config |= content
    for name, value in config.items():
        if actions[name].nargs == "+" and isinstance(value, str):
            config[name] = [value]
    schedule = config.pop("objective_schedule", None)
    parser.set_defaults(**config)
    namespace = vars(parser.parse_args(command_line))
    if schedule is not None:
        namespace["objective_schedule"] = schedule
    model, data, args = parser.parse_dict(namespace)
    return model, data, args


def train(arguments: Arguments) -> MagnetMixin | None:
    """Adapt a base model and write its folders.

    Args:
        arguments: of the run.

    Returns:
        The adapted, merged model, which is also in `output_dir/model`; None in all but the main process.

    Raises:
        ValueError: `output_dir` holds a run with other settings, or an argument does not fit.
        BlockingIOError: another run is using `output_dir`.
    """
    check_arguments(arguments)
    with run_lock(Path(arguments[2].output_dir), arguments):
        return _train(arguments)


def _train(arguments: Arguments) -> MagnetMixin | None:
    model_arguments, _, args = arguments
    output = Path(args.output_dir)
    with args.main_process_first(local=False, desc="the run's folder"):
        claim(output, arguments)
    trainer = make_trainer(arguments)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output))
    adapted = save_run(trainer, model_arguments, output)
    if adapted is None:
        return None
    history = trainer.state.log_history
    print(write_report(history, output, details_of(arguments, trainer)))
    write_card(output / "model", output)
    if args.push_to_hub:
        print(f"uploaded {push(output / 'model', args)}")
    return adapted


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse(sys.argv[1:])
    if arguments[2].process_index:
        logging.getLogger().setLevel(logging.WARNING)
    train(arguments)
    if arguments[2].process_index == 0:
        print(f"wrote {Path(arguments[2].output_dir) / 'model'}")


if __name__ == "__main__":
    main()
