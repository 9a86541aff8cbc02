"""Makes what the trainer works on from a model and datasets in memory, and turns the result back."""

import contextlib
import copy
import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, cast

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedTokenizerFast, set_seed

from modeling_magnet import MagnetMixin, magnet_class_for

from .arguments import OBJECTIVES, ExampleArguments, MagnetTrainingArguments
from .base import load_base, resolve_start_token, single_token_id
from .collator import MagnetCollator
from .columns import EXPECTED_COLUMNS, DatasetUse, pairs_of, recognize, text_rows
from .config import MagnetConfig
from .data import Blocks, MagnetDataset, Pairs
from .matryoshka import sizes_of
from .objectives import ObjectivesMixin, objectives_class_for
from .tables import cut_into_blocks


@dataclasses.dataclass
class Prepared:
    """What a trainer works on."""

    model: Any
    args: MagnetTrainingArguments
    train_dataset: MagnetDataset
    eval_dataset: MagnetDataset | None
    collator: MagnetCollator


def prepare(
    model: Any, args: MagnetConfig, train: Any, held_out: Any, peft_config: PeftConfig | None
) -> Prepared:
    """Load the base, add the adapter, and choose objectives and collator by the columns.

    Args:
        model: what `load_magnet` takes, `smollm2`, or a model of it.
        args: of the run.
        train: a `datasets.Dataset`, or a dict of them.
        held_out: the same for evaluation; None: do not evaluate.
        peft_config: of a new adapter. None: train the model's own adapter, or all weights.

    Raises:
        TypeError: something is of another kind.
        ValueError: columns do not fit any objective or the weights, a row is unusable, or an argument
            does not fit the model.
    """
    uses = recognize(train, "train_dataset")
    held_out_uses = {} if held_out is None else recognize(held_out, "eval_dataset")
    check_weights(args, uses)
    if args.guide_margin is not None and not {"sscl", "distil"} <= set(_allowed(uses)):
        raise ValueError(
            f"guide_margin is {args.guide_margin}, but train_dataset has no pairs with a guide's vectors: "
            "give anchor, positive, anchor_vector, positive_vector"
        )
    pairs, held_out_pairs = _pairs(uses, "train_dataset"), _pairs(held_out_uses, "eval_dataset")
    set_seed(args.seed)
    model = _load_model(model)
    _set_settings(model, args, uses)
    check_lengths(args, model.magnet_settings.max_length, "text" in uses, pairs is not None)
    mask_token_id = single_token_id(model.tokenizer, args.mask_token, "mask_token")
    with args.main_process_first(local=False, desc="the data"):
        blocks, held_out_blocks = _blocks(uses, args, model), _blocks(held_out_uses, args, model)
    items_per_step = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    )
    per_block = 0 if pairs is None else args.pairs_per_block if blocks is not None else 1
    items = len(blocks) if blocks is not None else len(pairs or ())
    args = _with_schedule(args, uses, math.ceil(args.num_train_epochs * items / items_per_step))
    length = args.max_steps * items_per_step
    eval_dataset = None
    if held_out is not None:
        eval_dataset = held_out_items(held_out_blocks, held_out_pairs, args.seed)
    collator = MagnetCollator(
        tokenizer=model.tokenizer,
        settings=model.magnet_settings,
        mask_token_id=mask_token_id,
        vocab_size=model.config.vocab_size,
        arguments=args,
        seed=args.seed,
        items_per_step=items_per_step,
    )
    trained = _to_training_class(model, peft_config)
    if args.has_weight("divergence") and not any(
        isinstance(m, BaseTunerLayer) for m in trained.modules()
    ):
        raise ValueError(
            "divergence compares with the model without its adapter: give a peft_config"
        )
    return Prepared(
        model=trained,
        args=args,
        train_dataset=MagnetDataset(blocks, pairs, length, per_block, args.seed),
        eval_dataset=eval_dataset,
        collator=collator,
    )


def check_weights(args: MagnetConfig, uses: dict[str, DatasetUse]) -> None:
    """Raise if the schedule's objectives and the data do not fit each other."""
    if not args.objective_schedule:
        return
    check_all_span_fraction(args, args)
    kinds = " and ".join(sorted(use.kind for use in uses.values()))
    allowed = _allowed(uses)
    for name in OBJECTIVES:
        if args.has_weight(name) and name not in allowed:
            raise ValueError(
                f"{name} has a weight, but train_dataset has only {kinds}: {EXPECTED_COLUMNS}"
            )


def _allowed(uses: dict[str, DatasetUse]) -> list[str]:
    return [name for use in uses.values() for name in use.objectives]


def check_all_span_fraction(example: ExampleArguments, args: MagnetTrainingArguments) -> None:
    """Raise unless blocks that are one span exist exactly if an objective uses them."""
    one_span = args.has_weight("ntp", "divergence")
    if one_span != (example.all_span_fraction > 0):
        raise ValueError(
            f"all_span_fraction is {example.all_span_fraction}, but the weights of ntp and divergence are "
            f"{'not ' if one_span else ''}all 0: blocks that are one span and these weights need "
            "each other"
        )


def check_lengths(example: ExampleArguments, limit: int, text: bool, pairs: bool) -> None:
    """Raise if a block, or a sentence of a pair, is longer than what the model reads at once."""
    lengths = {"block_length": example.block_length if text else 0}
    lengths["pair_length"] = example.pair_length if pairs else 0
    for name, length in lengths.items():
        if length > limit:
            raise ValueError(
                f"{name} is {length}, but the model's max_length (by its positions or its sliding window) is "
                f"{limit}: lower {name}"
            )
    most = example.block_length + example.max_spans * example.max_gap_length
    if text and example.end_of_span_fraction and most > limit:
        raise ValueError(
            f"block_length {example.block_length} and max_spans {example.max_spans} gaps of "
            f"max_gap_length {example.max_gap_length} are {most} positions, but the model has {limit}: "
            "lower one of them"
        )


def held_out_items(
    blocks: Blocks | None, pairs: Pairs | None, seed: int, group_size: int = 1
) -> MagnetDataset:
    """All blocks and pairs in order, for evaluation. The pairs are spread evenly over the blocks.

    Raises:
        ValueError: there are fewer pairs than blocks.
    """
    length = len(blocks) if blocks is not None else len(pairs or ())
    if pairs is not None and len(pairs) < length:
        raise ValueError(
            f"there are {len(pairs)} pairs for {length} blocks to evaluate on: give more pairs "
            "(validation_pair_count), or less text (validation_blocks)"
        )
    per_block = len(pairs) // length if pairs is not None else 0
    return MagnetDataset(blocks, pairs, length, per_block, seed, group_size, held_out=True)


def _pairs(uses: dict[str, DatasetUse], name: str) -> Pairs | None:
    return pairs_of(uses["pairs"], name) if "pairs" in uses else None


def _blocks(uses: dict[str, DatasetUse], args: MagnetConfig, model: MagnetMixin) -> Blocks | None:
    if "text" not in uses:
        return None
    settings, tokenizer = model.magnet_settings, cast(PreTrainedTokenizerFast, model.tokenizer)
    return cut_into_blocks(
        partial(text_rows, uses["text"]), uses["text"].dataset._fingerprint, args,
        tokenizer, settings.start_token_id, settings.split_special_tokens,
    )  # fmt: skip


def _with_schedule(args: MagnetConfig, uses: dict[str, DatasetUse], steps: int) -> MagnetConfig:
    """The arguments with a schedule. Default: one phase with every objective that the data allows."""
    if args.objective_schedule:
        return args
    resting = ["divergence"] if args.all_span_fraction else ["divergence", "ntp"]
    resting += ["distil"] if args.guide_margin is not None else []
    names = [name for name in _allowed(uses) if name not in resting]
    phase = {"steps": args.max_steps if args.max_steps > 0 else steps, **dict.fromkeys(names, 1.0)}
    return dataclasses.replace(args, objective_schedule=[phase])


def _load_model(model: Any) -> MagnetMixin:
    if isinstance(model, (str, os.PathLike)):
        return load_base(str(model))
    if not isinstance(model, MagnetMixin) or isinstance(model, ObjectivesMixin):
        raise TypeError(
            f"model is {type(model).__name__}: give a folder, a Hub id or a model of load_magnet"
        )
    return model


def _set_settings(model: MagnetMixin, args: MagnetConfig, uses: dict[str, DatasetUse]) -> None:
    """Set the start token, the length of texts and the Matryoshka sizes in the model's settings."""
    settings = model.magnet_settings.to_dict()
    given = getattr(model.config, "magnet", None)
    if args.start_token != "auto" or (not given and "text" in uses):
        texts = (
            [row["text"] for row in islice(text_rows(uses["text"], Counter()), 160)]
            if (args.start_token == "auto")
            else []
        )
        settings["start_token_id"] = resolve_start_token(model.eval(), args.start_token, texts)
    settings |= sizes_of(args, model.config)
    if "text" in uses:
        settings["trained_length"] = args.block_length // min(args.cut_blocks)
    model.config.magnet = settings


def _to_training_class(
    model: MagnetMixin, peft_config: PeftConfig | None
) -> ObjectivesMixin | PeftModel:
    """Turn the model into its training class, which computes the losses, without a projection head."""
    trained: Any = model
    trained.__class__ = objectives_class_for(type(model))
    trained.projection = nn.Identity()
    adapters = model.peft_config if getattr(model, "_hf_peft_config_loaded", False) else {}
    if peft_config is None:
        if adapters:
            kinds = {f"{config.peft_type.value.lower()}_" for config in adapters.values()}
            for name, weight in trained.named_parameters():
                weight.requires_grad_(any(kind in name for kind in kinds))
        return trained
    if adapters:
        raise ValueError(
            "the model has an unmerged adapter: leave out peft_config to train that adapter further, or "
            "merge it (magnet export --to magnet) and give that folder"
        )
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"peft_config is a {type(peft_config).__name__}, which puts tokens before a text that the "
            "span map does not cover: give an adapter of layers, such as LoraConfig"
        )
    return get_peft_model(trained, copy.deepcopy(peft_config))  # which writes the base into it


@contextlib.contextmanager
def as_magnet(model: ObjectivesMixin | PeftModel) -> Iterator[MagnetMixin]:
    """Turn a model in training back into a MAGNET model inside the block, with its adapter unmerged."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    training_class, head = type(inner), inner.projection
    inner.__class__ = magnet_class_for(inner.config)
    del inner.projection
    if isinstance(model, PeftModel):
        inner.peft_config, inner._hf_peft_config_loaded = model.peft_config, True
    try:
        yield inner
    finally:
        if isinstance(model, PeftModel):
            inner._hf_peft_config_loaded = False
            del inner.peft_config
        inner.__class__, inner.projection = training_class, head
