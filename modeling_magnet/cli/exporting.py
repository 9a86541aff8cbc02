"""`magnet export`: an adapter merged into a whole folder, and copies that other tools open without MAGNET's code."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing

from ..atomic import atomic_write
from ..checks import whole_number
from . import gguf_file, onnx_graph
from .checking import ENCODERS, check_export

CODE_KEYS = ("auto_map", "magnet")
"""Keys of a config that only MAGNET's code reads."""


def export(
    model: Any,
    to: str,
    out: Path,
    num_layers: int | None = None,
    truncate_dim: int | None = None,
) -> None:
    """Write a copy, whole or not at all.

    Args:
        model: of `load_model`. An adapter is merged into its weights.
        to: a key of `EXPORTS`.
        out: a new folder; of gguf a new file.
        num_layers: as in `encode`; the model keeps no others. For `checking.ENCODERS`.
        truncate_dim: what sentence-transformers is to keep of a vector. For `encoder`.

    Raises:
        ValueError: the format cannot hold this model, the model has fewer layers or dimensions, or
            sentence-transformers cannot pool as it does.
        FileExistsError: something exists there.
        ModuleNotFoundError: a package that `to` needs is not installed.
    """
    check_export(to, out, num_layers, truncate_dim)
    if to.startswith("gguf"):
        gguf_file.check(model, encodes=to in ENCODERS)
    if truncate_dim is not None:
        whole_number("truncate_dim", truncate_dim, most=model.config.hidden_size)
        if not _pools_elsewhere(model.magnet_settings):
            raise ValueError(
                f"--truncate-dim is for sentence-transformers, which cannot pool as this model "
                f"({model.magnet_settings.pooling}, without the start token): leave it out"
            )
    merge_adapter(model)
    if num_layers is not None:
        keep_layers(model, num_layers)
    out.parent.mkdir(parents=True, exist_ok=True)
    if to == "magnet":  # writes atomically by itself, with a card that names the folder
        return EXPORTS[to](model, out)
    with atomic_write(out) as temporary:
        EXPORTS[to](model, temporary, **({"truncate_dim": truncate_dim} if truncate_dim else {}))


def merge_adapter(model: Any) -> None:
    """Add an adapter's weights to those of its base, and take it away.

    Raises:
        ValueError: it holds whole modules beside low-rank weights.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ValueError(f"the adapter replaces all of {name}, which cannot be merged")
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    model._hf_peft_config_loaded = False
    del model.peft_config


def keep_layers(model: Any, num_layers: int) -> None:
    """Take all but the first layers away.

    Raises:
        ValueError: the model has fewer layers.
    """
    model._checked_layers(num_layers)
    config = model.config
    model.base_model.layers = model.base_model.layers[:num_layers]
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:num_layers]


def export_plain(model: Any, folder: Path) -> None:
    """The model as its stock class: generates anywhere, with no word of MAGNET."""
    _save_as(getattr(transformers, model._base_class_name()), model, folder)
    model.generation_config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def export_encoder(model: Any, folder: Path, truncate_dim: int | None = None) -> None:
    """The decoder without its head and causal mask: encodes, and cannot generate.

    The tokenizer adds the start and the end token, so that what stock transformers reads is what
    `encode` reads. sentence-transformers opens the folder where it can pool as the checkpoint says.
    """
    _save_as(type(model.base_model), model.base_model, folder, **_encoder_keys(model))
    _save_for_encoding(model, folder, truncate_dim)


def export_onnx(model: Any, folder: Path) -> None:
    """The encoder export with an ONNX graph, including the pooling, instead of its weights."""
    (folder / "onnx").mkdir(parents=True)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model.base_model).__name__], torch.float32
    config.save_pretrained(folder)
    _edit_config(folder, **_encoder_keys(model))
    _save_for_encoding(model, folder)
    onnx_graph.write(model, folder / "onnx" / "model.onnx")


EXPORTS: dict[str, Callable[..., None]] = {
    "magnet": lambda model, folder: model.save_pretrained(folder),
    "plain": export_plain,
    "encoder": export_encoder,
    "onnx": export_onnx,
    "gguf": gguf_file.write,
    "gguf-encoder": partial(gguf_file.write, encodes=True),
}
"""How each of `checking.EXPORTS` is written."""

POOLING_MODES = {
    "end": "lasttoken",
    "first": "cls_token",
    "mean": "mean_tokens",
    "weighted_mean": "weightedmean_tokens",
}
"""What sentence-transformers calls a checkpoint's pooling."""


def _save_as(stock_class: Any, source: Any, folder: Path, **changes: Any) -> None:
    """Save a model's weights as those of a stock class, with changes to its config.

    The model itself would also save what loading it did, such as an adapter's names of weights.
    """
    with torch.device("meta"):
        stock = stock_class(copy.deepcopy(source.config))
    stock.load_state_dict(source.state_dict(), assign=True)
    stock.tie_weights()
    stock.save_pretrained(folder)
    _edit_config(folder, **changes)


def _encoder_keys(model: Any) -> dict[str, Any]:
    """What a config says of an encoder: `is_causal` to transformers and vLLM, `use_bidirectional_attention`
    to text-embeddings-inference and to a Gemma 3, and the widths that vLLM may be asked for.
    """
    config, dims = model.config, model.magnet_settings.matryoshka_dims
    keys: dict[str, Any] = {"is_causal": False, "use_bidirectional_attention": True}
    if config.model_type == "gemma3_text":  # whose class then reads n as n / 2 + 1
        keys["sliding_window"] = 2 * (config.sliding_window - 1)
    if dims:
        keys |= {"is_matryoshka": True, "matryoshka_dimensions": dims}
    return keys


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    config = {name: value for name, value in config.items() if name not in CODE_KEYS}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_for_encoding(model: Any, folder: Path, truncate_dim: int | None = None) -> None:
    """The tokenizer that frames texts, and what sentence-transformers reads."""
    settings = model.magnet_settings
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.model_max_length = settings.max_length
    if tokenizer.pad_token is None:  # batches need one; which it is, the mask hides
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(settings.end_token_id)
    tokenizer.save_pretrained(folder)
    _frame_by_special_tokens(model, folder)
    if _pools_elsewhere(settings):
        _write_sentence_transformers_files(model, folder, truncate_dim)


def _pools_elsewhere(settings: Any) -> bool:
    """Whether sentence-transformers can pool so: its means would take in a start token."""
    starts = settings.start_in_encode and settings.start_token_id is not None
    return settings.pooling in ("end", "first") or not starts


def _frame_by_special_tokens(model: Any, folder: Path) -> None:
    """Make the saved tokenizer put the start token before and the end token after a text."""
    settings, name_of = model.magnet_settings, model.tokenizer.convert_ids_to_tokens
    starts = settings.start_in_encode and settings.start_token_id is not None
    start = [settings.start_token_id] if starts else []
    end = settings.end_token_id
    processor = TemplateProcessing(
        single=[*map(name_of, start), "$A", name_of(end)],
        special_tokens=[(name_of(i), i) for i in dict.fromkeys([end, *start])],
    )
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["post_processor"] = json.loads(processor.__getstate__())
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write_sentence_transformers_files(
    model: Any, folder: Path, truncate_dim: int | None = None
) -> None:
    settings = model.magnet_settings
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(types.items())
        ],
        "sentence_bert_config.json": {
            "max_seq_length": settings.max_length,
            "processing_kwargs": {"text": {"split_special_tokens": settings.split_special_tokens}},
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": settings.sentence_transformers_prompts,
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": "cosine",
            "truncate_dim": truncate_dim,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.config.hidden_size,
            "include_prompt": True,
            **{
                f"pooling_mode_{mode}": how == settings.pooling
                for how, mode in POOLING_MODES.items()
            },
        },
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
