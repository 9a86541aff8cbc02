"""Adapt a Llama with MAGNET.

    python -m training.train training/configs/smollm2-135m.yaml
    python -m training.train training/configs/smollm2-135m.yaml --learning_rate 1e-4 --seed 1
    python -m training.train training/configs/smollm2-135m.yaml training/configs/ablations/mntp.yaml
    accelerate launch --config_file training/accelerate/ddp.yaml -m training.train CONFIG

Of several configs, later ones win. Writes under `output_dir`: `base/` (the base as a MAGNET folder),
`adapter/` (LoRA only), `model/` (the merged MAGNET folder), results and curves, and the run's
checkpoints. Run again after a kill and it goes on from the last complete checkpoint.
"""

import dataclasses
import json
import logging
import platform
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import safe_open
from transformers import EarlyStoppingCallback, HfArgumentParser, set_seed

from modeling_magnet import MagnetLlamaForCausalLM

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments
from .base import for_objectives, prepare_base, single_token_id
from .collator import MagnetCollator
from .data import MagnetDataset, counts_table, first_texts, make_blocks, read_pairs
from .export import export, push, write_card
from .report import write_report
from .trainer import MagnetTrainer

Arguments = tuple[ModelArguments, DataArguments, MagnetTrainingArguments]

logger = logging.getLogger(__name__)

FREE = (
    "output_dir", "token_cache", "logging_dir", "report_to", "run_name", "disable_tqdm", "push_to_hub",
    "hub_model_id", "hub_token", "hub_private_repo", "save_total_limit", "save_steps",
    "dataloader_num_workers", "local_rank", "logging_steps", "log_level", "hub_strategy",
)  # fmt: skip
"""Settings that a resumed run may have otherwise than it began: they change no result."""


def parse(command_line: list[str]) -> Arguments:
    """Read YAML configs, later ones over earlier ones, and the command-line overrides behind them.

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


def make_trainer(arguments: Arguments) -> MagnetTrainer:
    """Everything of a run but its start: base, data, collator, the model in its training class."""
    model_arguments, data, args = arguments
    base = Path(args.output_dir) / "base"
    set_seed(args.seed)
    with args.main_process_first(local=False, desc="the base model"):
        auto = model_arguments.start_token == "auto" and bool(data.text)
        texts = first_texts(data, 160) if auto else []
        prepare_base(model_arguments, texts, base)
    model = for_objectives(base, model_arguments)
    inner: Any = model if isinstance(model, MagnetLlamaForCausalLM) else model.get_base_model()
    tokenizer, settings = inner.tokenizer, inner.magnet_settings
    mask_token_id = single_token_id(tokenizer, model_arguments.mask_token, "mask_token")
    items_a_step = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    length = args.max_steps * items_a_step
    with args.main_process_first(local=False, desc="the data"):
        train_dataset = _dataset(arguments, tokenizer, settings.start_token_id, length, False)
        eval_dataset = None
        if args.eval_strategy != "no":
            eval_dataset = _dataset(arguments, tokenizer, settings.start_token_id, 0, True)
    collator = MagnetCollator(
        tokenizer=tokenizer,
        settings=settings,
        mask_token_id=mask_token_id,
        vocab_size=inner.config.vocab_size,
        arguments=data,
        seed=args.seed,
        items_a_step=items_a_step,
    )
    if train_dataset.pairs is not None:
        collator.warn_of_cut_pairs(
            [train_dataset.pairs[i] for i in range(min(1000, len(train_dataset.pairs)))]
        )
    trainer = MagnetTrainer(
        model=model,
        args=dataclasses.replace(args, push_to_hub=False) if args.push_to_hub else args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=tokenizer,
    )
    if args.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
    return trainer


def _dataset(
    arguments: Arguments, tokenizer, start_token_id: int | None, length: int, validation: bool
) -> MagnetDataset:
    """The run's items, or those to evaluate on."""
    _, data, args = arguments
    name = "validation" if validation else "training"
    text, sentences = (
        (data.validation_text, data.validation_pairs) if validation else (data.text, data.pairs)
    )
    blocks = pairs = None
    if text and (validation or args.ever("mntp", "msg", "ntp", "divergence")):
        most = data.validation_blocks if validation else length
        blocks = make_blocks(data, tokenizer, start_token_id, validation=validation, most=most)
        logger.info(counts_table(f"{name} text", blocks.counts))
    if sentences and data.pairs_per_block and (validation or args.ever("sscl")):
        pairs = read_pairs(data, validation=validation)
        logger.info(counts_table(f"{name} pairs", pairs.counts))
    if blocks is None and pairs is None:
        raise ValueError(
            f"there is nothing for {name}: set "
            + ("validation_text or validation_pairs" if validation else "text or pairs")
        )
    pairs_per_block = data.pairs_per_block
    if validation and pairs is not None:
        length = len(blocks) if blocks is not None else len(pairs)
        if len(pairs) < length:
            raise ValueError(
                f"there are {len(pairs)} pairs for {length} blocks to evaluate on: raise "
                "validation_pair_count, or lower validation_blocks"
            )
        pairs_per_block = len(pairs) // length
    elif validation and blocks is not None:
        length = len(blocks)
    return MagnetDataset(
        blocks,
        pairs,
        length,
        pairs_per_block if pairs is not None else 0,
        args.seed,
        group_size=data.group_size if data.group_column else 1,
        held_out=validation,
    )


def train(arguments: Arguments) -> MagnetLlamaForCausalLM | None:
    """Adapt a base model and write its folders.

    Args:
        arguments: of the run.

    Returns:
        The adapted, merged model, also in `output_dir/model`; None but in the main process.

    Raises:
        ValueError: `output_dir` holds a run with other settings, or an argument does not fit.
    """
    model_arguments, _, args = arguments
    output = Path(args.output_dir)
    check_arguments(arguments)
    with args.main_process_first(local=False, desc="the run's folder"):
        claim(output, arguments)
    trainer = make_trainer(arguments)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output))
    adapted = export(trainer, model_arguments, output)
    if adapted is None:
        return None
    history = trainer.state.log_history
    write_card(output / "model", *arguments, history)
    print(write_report(history, output, details_of(arguments, trainer)))
    if args.push_to_hub:
        print(f"uploaded {push(output / 'model', args)}")
    return adapted


def check_arguments(arguments: Arguments) -> None:
    """Raise where arguments do not fit each other, before anything is loaded."""
    model, data, args = arguments
    one_span = args.ever("ntp", "divergence")
    if one_span != (data.all_span_fraction > 0):
        raise ValueError(
            f"all_span_fraction is {data.all_span_fraction}, the weights of ntp and divergence are "
            f"{'not ' if one_span else ''}all 0: blocks that are one span and these weights need "
            "each other"
        )
    if args.ever("divergence") and model.lora_r == 0:
        raise ValueError(
            "divergence is from the model without its adapter, and lora_r is 0: set lora_r"
        )
    if args.ever("sscl") and (data.pairs_per_block < 1 or not data.pairs):
        raise ValueError("sscl has a weight, but there are no pairs: set pairs, pairs_per_block")
    if args.ever("mntp", "msg", "ntp", "divergence") and not data.text:
        raise ValueError(
            "mntp, msg, ntp or divergence has a weight, but there is no text: set text"
        )
    dropout = max(model.lora_dropout, model.attention_dropout)
    if args.ever("sscl") and len(data.pair_columns) == 1 and not dropout:
        raise ValueError(
            "pair_columns names one column, so dropout alone makes the positives, and lora_dropout "
            "and attention_dropout are 0: set one of them"
        )


def claim(output: Path, arguments: Arguments) -> None:
    """Note the run's settings in its folder; refuse a folder that was begun with others."""
    model, data, args = arguments
    mine = {"processes": args.world_size}
    for part in (dataclasses.asdict(model), dataclasses.asdict(data), args.to_dict()):
        mine |= {k: v for k, v in part.items() if k not in FREE}
    mine = json.loads(json.dumps(mine, default=str, sort_keys=True))
    path = output / "run.json"
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{k} was {theirs.get(k)!r}, is {mine.get(k)!r}"
            for k in sorted(mine.keys() | theirs.keys())
            if mine.get(k) != theirs.get(k)
        ]
        if changed:
            raise ValueError(
                f"{output} holds a run with other settings ({'; '.join(changed)}): give another "
                "output_dir, or delete that one"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    aside = output / ".run.json.partial"
    aside.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def last_complete_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that a kill, a full disk or a fault has not left in pieces.

    The Trainer writes `trainer_state.json` last. Files are checked as far as their formats tell:
    sizes for safetensors, checksums for what torch saves.
    """
    steps = sorted(
        (path for path in output.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()),
        key=lambda path: -int(path.name.split("-")[-1]),
    )
    for folder in steps:
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            for path in folder.rglob("*.safetensors"):
                with safe_open(path, framework="pt"):
                    pass
            for path in (*folder.rglob("*.pt"), *folder.rglob("*.pth")):
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise ValueError(f"{path.name} has a wrong checksum")
        except Exception as error:
            logger.warning("%s is not complete, so it is not used: %s", folder, error)
            continue
        return str(folder)
    if steps:
        logger.warning("no checkpoint in %s is complete: the run begins anew", output)
    return None


def details_of(arguments: Arguments, trainer: MagnetTrainer) -> dict:
    """What a run's figures were measured on and with."""
    model, data, args = arguments
    metrics = next((m for m in trainer.state.log_history[::-1] if "train_runtime" in m), {})
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type
    return {
        "base model": Path(model.model).name,
        "text": ", ".join(Path(name).name for name in data.text),
        "pairs": ", ".join(Path(name).name for name in data.pairs),
        "steps": trainer.state.global_step,
        "a step": f"{trainer.data_collator.items_a_step} blocks of {data.block_length} tokens, "
        f"{data.pairs_per_block} pairs with each",
        "seed": args.seed,
        "evaluated on": f"{data.validation_blocks} blocks, {data.validation_pair_count} pairs"
        if trainer.eval_dataset is not None
        else "nothing",
        "devices": f"{args.world_size} x {device} ({platform.machine()})",
        "seconds": round(metrics.get("train_runtime", 0)),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


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
