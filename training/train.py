"""Adapt a Llama with MAGNET.

    python -m training.train training/configs/smollm2-135m.yaml
    python -m training.train training/configs/smollm2-135m.yaml --learning_rate 1e-4 --seed 1
    python -m training.train training/configs/smollm2-135m.yaml --model meta-llama/Llama-3.2-1B

Writes under `output_dir`: `base/` (the base as a MAGNET folder), `adapter/` (LoRA only), `model/` (the
merged MAGNET folder), and the run's checkpoints. Run again after a kill and it goes on from the last
checkpoint.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel
from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_magnet import MagnetLlamaForCausalLM

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments
from .base import for_objectives, load_base, resolve_start_token, single_token_id
from .collator import MagnetCollator
from .data import MagnetDataset, make_blocks, read_columns
from .export import merged, save_adapter, write_card
from .trainer import MagnetTrainer

Arguments = tuple[ModelArguments, DataArguments, MagnetTrainingArguments]


def parse(command_line: list[str]) -> Arguments:
    """Read a YAML config and the command-line overrides behind it.

    Raises:
        SystemExit: an argument is unknown (argparse's message says which).
        ValueError: the config holds an unknown key.
    """
    classes: Any = (ModelArguments, DataArguments, MagnetTrainingArguments)
    parser = HfArgumentParser(classes)
    config: dict = {}
    if command_line and not command_line[0].startswith("--"):
        path, *command_line = command_line
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    known = {action.dest for action in parser._actions}
    unknown = set(config) - known
    if unknown:
        raise ValueError(f"{path} holds unknown keys {sorted(unknown)}")
    schedule = config.pop("objective_schedule", None)
    parser.set_defaults(**config)
    namespace = vars(parser.parse_args(command_line))
    if schedule is not None:
        namespace["objective_schedule"] = schedule
    model, data, args = parser.parse_dict(namespace)
    return model, data, args


def settle_start_token(
    model: MagnetLlamaForCausalLM, arguments: ModelArguments, data: DataArguments
) -> None:
    """Write the start token that the run names, or that is measured to be best, into the model."""
    texts = read_columns(data.blocks_file, ("text",))["text"][:]
    settings = model.magnet_settings
    settings.start_token_id = resolve_start_token(model, arguments.start_token, texts)
    settings.start_in_encode = arguments.start_in_encode
    model.config.magnet = settings.to_dict()


def make_trainer(model: MagnetLlamaForCausalLM, arguments: Arguments) -> MagnetTrainer:
    """Everything of a run but its start: data, collator, the model in its training class."""
    model_arguments, data, args = arguments
    tokenizer, settings = model.tokenizer, model.magnet_settings
    items_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    collator = MagnetCollator(
        tokenizer=tokenizer,
        settings=settings,
        mask_token_id=single_token_id(tokenizer, model_arguments.mask_token, "mask_token"),
        vocab_size=model.config.vocab_size,
        arguments=data,
        seed=args.seed,
        items_a_step=items_a_step,
    )
    blocks = make_blocks(
        read_columns(data.blocks_file, ("text",))["text"],
        tokenizer,
        settings.start_token_id,
        data.block_length,
    )
    pairs = []
    if data.pairs_per_block:
        table = read_columns(data.pairs_file, ("sentence", "paraphrase"))
        pairs = list(zip(table["sentence"], table["paraphrase"], strict=True))
    dataset = MagnetDataset(
        blocks, pairs, args.max_steps * items_a_step, data.pairs_per_block, args.seed
    )
    return MagnetTrainer(
        model=for_objectives(model, model_arguments),
        args=args,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=tokenizer,
    )


def train(model: MagnetLlamaForCausalLM, arguments: Arguments) -> MagnetLlamaForCausalLM:
    """Adapt a base model and write its folders.

    Args:
        model: the base, its start token settled; its weights are taken over.
        arguments: of the run.

    Returns:
        The adapted, merged model, also in `output_dir/model`.
    """
    args = arguments[2]
    output = Path(args.output_dir)
    set_seed(args.seed)
    model.save_pretrained(output / "base")
    trainer = make_trainer(model, arguments)
    checkpoint = get_last_checkpoint(args.output_dir) if output.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    if isinstance(trainer.model, PeftModel):
        save_adapter(trainer.model, output / "base", output / "adapter")
    adapted = merged(trainer.model)
    adapted.eval()
    adapted.save_pretrained(output / "model")
    write_card(output / "model", *arguments, trainer.state.log_history)
    return adapted


def main() -> None:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse(sys.argv[1:])
    model = load_base(arguments[0].model)
    settle_start_token(model, *arguments[:2])
    train(model, arguments)
    print(f"wrote {Path(arguments[2].output_dir) / 'model'}")


if __name__ == "__main__":
    main()
