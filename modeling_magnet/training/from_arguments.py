"""Makes a run's trainer from its arguments: base, data, collator, model."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, set_seed

from modeling_magnet import MagnetMixin, MagnetSettings

from .arguments import PAIR_OBJECTIVES, Arguments
from .base import load_for_training, prepare_base, single_token_id, unsharded_weights
from .collator import MagnetCollator
from .data import MagnetDataset, counts_table, first_texts, make_blocks, read_pairs
from .from_datasets import check_all_span_fraction, check_lengths, held_out_items
from .trainer import MagnetTrainer

logger = logging.getLogger(__name__)


def check_arguments(arguments: Arguments) -> None:
    """Raise if arguments do not fit each other, before anything is loaded."""
    model, data, args = arguments
    check_all_span_fraction(data, args)
    if model.adapter is not None and model.lora_r == 0:
        raise ValueError(f"adapter is {model.adapter}, but lora_r is 0: set lora_r to its rank")
    if args.has_weight("divergence") and model.lora_r == 0:
        raise ValueError(
            "divergence compares with the model without its adapter, but lora_r is 0: set lora_r"
        )
    for name in PAIR_OBJECTIVES:
        if args.has_weight(name) and (data.pairs_per_block < 1 or not data.pairs):
            raise ValueError(
                f"{name} has a weight, but there are no pairs: set pairs, pairs_per_block"
            )
    if args.has_weight("supcon") != (data.label_column is not None):
        raise ValueError(
            f"the weight of supcon is {'not ' if args.has_weight('supcon') else ''}all 0, and label_column is "
            f"{data.label_column}: they need each other"
        )
    for name, wanted in (("sscl", False), ("cosent", True)):
        if args.has_weight(name) and wanted != (data.score_column is not None):
            raise ValueError(
                f"{name} has a weight, but score_column is {data.score_column}: cosent works on pairs "
                "with a score, sscl on pairs without"
            )
    if args.has_weight("distil") and not data.vector_columns:
        raise ValueError(
            "distil has a weight, but vector_columns is empty: name the columns of a teacher's vectors, "
            "which modeling_magnet.training.teacher_vectors writes"
        )
    if data.vector_columns and not args.has_weight("distil") and args.guide_margin is None:
        raise ValueError(
            f"vector_columns is {data.vector_columns}, but nothing reads them: give distil a weight, or set "
            "guide_margin"
        )
    if args.has_weight("distil") and model.projection_head:
        raise ValueError(
            "distil has a weight, but projection_head is true. The head would learn in place of the model, "
            "and is dropped afterwards: set projection_head: false"
        )
    if args.guide_margin is not None and not (args.has_weight("sscl") and data.vector_columns):
        raise ValueError(
            f"guide_margin is {args.guide_margin}, but works only for sscl on pairs with a guide's vectors: "
            "give sscl a weight, and set vector_columns"
        )
    if (
        args.has_weight("sscl")
        and len(data.pair_columns) == 1
        and (data.vector_columns or data.label_column)
    ):
        raise ValueError(
            f"sscl has a weight, but pair_columns is {data.pair_columns}: together with a teacher's vectors "
            "or classes, sscl needs two columns"
        )
    if args.matryoshka_dims and model.projection_head:
        raise ValueError(
            "matryoshka_dims cut the vectors that encode returns, but projection_head mixes their "
            "dimensions before the loss: set projection_head to false"
        )
    if args.has_weight("mntp", "msg", "ntp", "divergence") and not data.text:
        raise ValueError(
            "mntp, msg, ntp or divergence has a weight, but there is no text: set text"
        )
    dropout = max(model.lora_dropout, model.attention_dropout)
    if args.has_weight("sscl") and len(data.pair_columns) == 1 and not dropout:
        raise ValueError(
            "pair_columns names one column, so only dropout makes the positives, but lora_dropout "
            "and attention_dropout are 0: set one of them"
        )


def make_trainer(arguments: Arguments) -> MagnetTrainer:
    """Make everything that a run needs: base, data, collator, and the model in its training class."""
    model_arguments, data, args = arguments
    base = Path(args.output_dir) / "base"
    set_seed(args.seed)
    with args.main_process_first(local=False, desc="the base model"):
        auto = model_arguments.start_token == "auto" and bool(data.text)
        texts = first_texts(data, 160) if auto else []
        with unsharded_weights(args):
            longest = data.block_length // min(data.cut_blocks) if data.text else None
            prepare_base(model_arguments, texts, base, longest, args)
    model = load_for_training(base, model_arguments)
    inner: Any = model if isinstance(model, MagnetMixin) else model.get_base_model()
    tokenizer, settings = inner.tokenizer, inner.magnet_settings
    check_lengths(data, settings.max_length, bool(data.text), bool(data.pairs))
    mask_token_id = single_token_id(tokenizer, model_arguments.mask_token, "mask_token")
    items_per_step = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    length = args.max_steps * items_per_step
    with args.main_process_first(local=False, desc="the data"):
        train_dataset = _dataset(arguments, tokenizer, settings, length, False)
        eval_dataset = None
        if args.eval_strategy != "no":
            eval_dataset = _dataset(arguments, tokenizer, settings, 0, True)
    collator = MagnetCollator(
        tokenizer=tokenizer,
        settings=settings,
        mask_token_id=mask_token_id,
        vocab_size=inner.config.vocab_size,
        arguments=data,
        seed=args.seed,
        items_per_step=items_per_step,
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
    arguments: Arguments, tokenizer, settings: MagnetSettings, length: int, validation: bool
) -> MagnetDataset:
    """The items to train on, or those to evaluate on."""
    _, data, args = arguments
    name = "validation" if validation else "training"
    text, sentences = (
        (data.validation_text, data.validation_pairs) if validation else (data.text, data.pairs)
    )
    blocks = pairs = None
    if text and (validation or args.has_weight("mntp", "msg", "ntp", "divergence")):
        blocks = make_blocks(
            data, tokenizer, settings.start_token_id, validation=validation, most=length,
            split_special_tokens=settings.split_special_tokens,
        )  # fmt: skip
        logger.info(counts_table(f"{name} text", blocks.counts))
    if sentences and data.pairs_per_block and (validation or args.has_weight(*PAIR_OBJECTIVES)):
        pairs = read_pairs(data, validation=validation)
        logger.info(counts_table(f"{name} pairs", pairs.counts))
    if blocks is None and pairs is None:
        raise ValueError(
            f"there is nothing for {name}: set "
            + ("validation_text or validation_pairs" if validation else "text or pairs")
        )
    group_size = data.group_size if data.group_column else 1
    if validation:
        return held_out_items(blocks, pairs, args.seed, group_size)
    return MagnetDataset(
        blocks,
        pairs,
        length,
        data.pairs_per_block if pairs is not None else 0,
        args.seed,
        group_size=group_size,
    )
