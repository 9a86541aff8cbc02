"""A Llama as one GGUF file for llama.cpp, by its own writer."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .extras import require

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    (GPT2,): "gpt-2",
    ("digits", GPT2): "smollm",
    (LLAMA3,): "llama-bpe",
}
"""llama.cpp's names of the ways in which text is split before merges."""

POOLING = {"end": "LAST", "first": "CLS", "mean": "MEAN"}
"""llama.cpp's names of how the states of a text become its vector."""

BYTE = re.compile("<0x[0-9A-F]{2}>")

CONVERTER = "use --to plain, and convert_hf_to_gguf.py of llama.cpp on that folder"


def check(model: Any, encodes: bool = False) -> None:
    """Raise where the file would not be the same model.

    Raises:
        ValueError: the architecture, its activation, its position angles, its tokenizer or the pooling
            of an encoder is none of those that are written here.
    """
    config = model.config
    if config.model_type != "llama":
        raise ValueError(
            f"--to gguf writes only the architecture llama, not {config.model_type!r}: {CONVERTER}"
        )
    rope = config.rope_parameters["rope_type"]
    if rope not in ("default", "linear", "llama3"):
        raise ValueError(
            f"--to gguf writes the rope_type default, linear or llama3, not {rope!r}: {CONVERTER}"
        )
    if config.hidden_act != "silu":
        raise ValueError(f"--to gguf writes only hidden_act silu, not {config.hidden_act!r}")
    if _pieces(model.tokenizer) is None:
        _pre_tokenizer(model.tokenizer)
    settings = model.magnet_settings
    starts = settings.start_in_encode and settings.start_token_id is not None
    if encodes and (settings.pooling not in POOLING or (settings.pooling == "mean" and starts)):
        raise ValueError(
            f"--to gguf-encoder writes the poolings end and first, and mean without a start token; this is "
            f"{settings.pooling!r} with{'' if starts else 'out'} one: llama.cpp has no other"
        )


def write(model: Any, path: Path, encodes: bool = False) -> None:
    """Write weights in the model's dtype (norms in float32), settings, tokenizer and chat template.

    With `encodes`, the file is read from both sides and gives vectors, instead of generating.
    """
    gguf = require("gguf", "--to gguf")
    check(model, encodes)
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _add_settings(writer, model, gguf)
        if encodes:
            pooling = POOLING[model.magnet_settings.pooling]
            writer.add_causal_attention(False)
            writer.add_pooling_type(gguf.PoolingType[pooling])
        with tempfile.TemporaryDirectory() as folder:
            _add_tokenizer(writer, model, gguf, Path(folder), encodes)
        for name, weight in _tensors(model, gguf, with_head=not encodes):
            if weight.dtype == torch.bfloat16:  # which numpy has not
                kind = gguf.GGMLQuantizationType.BF16
                bits = weight.contiguous().view(torch.uint8).numpy()
                writer.add_tensor(name, bits, raw_dtype=kind)
            else:
                writer.add_tensor(name, weight.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(f"the file is not whole, {error}: is the disk full?") from error  # numpy's
    finally:
        writer.close()


def _add_settings(writer: Any, model: Any, gguf: Any) -> None:
    config, rope = model.config, model.config.rope_parameters
    file_types = {
        torch.float32: gguf.LlamaFileType.ALL_F32,
        torch.float16: gguf.LlamaFileType.MOSTLY_F16,
        torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
    }
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(model.name_or_path).name)
    writer.add_file_type(file_types[model.dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _add_tokenizer(writer: Any, model: Any, gguf: Any, folder: Path, encodes: bool) -> None:
    tokenizer = model.tokenizer
    kinds, tokens, types = gguf.TokenType, [], []
    for token_id in range(model.config.vocab_size):
        token = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
        added = tokenizer.added_tokens_decoder.get(token_id)
        if token is None:
            kind = kinds.UNUSED
        elif added is not None:
            kind = kinds.CONTROL if added.special else kinds.USER_DEFINED
        else:
            kind = kinds.NORMAL
        tokens.append(f"[PAD{token_id}]" if token is None else token)
        types.append(kind)
    pieces = _pieces(tokenizer)
    if pieces is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(pieces.space_before)
        writer.add_token_scores([pieces.scores.get(token, 0.0) for token in tokens])
        for token_id, token in enumerate(tokens):
            if BYTE.fullmatch(token):
                types[token_id] = kinds.BYTE
            elif token == tokenizer.unk_token:
                types[token_id] = kinds.UNKNOWN
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    tokenizer.save_pretrained(folder)
    special = gguf.SpecialVocab(folder, load_merges=pieces is None, n_vocab=len(tokens))
    framed, bare = (
        tokenizer("a")["input_ids"],
        tokenizer("a", add_special_tokens=False)["input_ids"],
    )
    special.add_special_token = {"bos": framed[0] != bare[0], "eos": framed[-1] != bare[-1]}
    if encodes:  # the tokens that frame a text
        settings = model.magnet_settings
        special.special_token_ids["eos"] = settings.end_token_id
        if settings.start_token_id is not None:
            special.special_token_ids["bos"] = settings.start_token_id
        special.add_special_token = {"bos": settings.special_tokens == 2, "eos": True}
    special.add_to_gguf(writer, quiet=True)


class Pieces(NamedTuple):
    """What a tokenizer that comes from sentencepiece merges by."""

    scores: dict[str, float]
    space_before: bool


def _pieces(tokenizer: Any) -> Pieces | None:
    """The scores of a tokenizer such as Llama 2's; None if its merges are no order of its tokens.

    llama.cpp merges any two neighbours that make a token, the token of the highest score first. That
    is the same where each token's merges are all there and stand together, as they do when merges
    were made from sentencepiece's scores.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    merging, normalizer, outer = parts["model"], parts["normalizer"], parts["pre_tokenizer"]
    if merging["type"] != "BPE" or not merging["byte_fallback"] or merging["ignore_merges"]:
        return None
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    if outer is None and normalizer is not None:  # as in Llama 2's own file
        steps = normalizer.get("normalizers", [normalizer])
        space_before = steps[0] == {"type": "Prepend", "prepend": "\u2581"}
        if steps[space_before:] != [spaces]:
            return None
    elif normalizer is None and outer is not None and outer["type"] == "Metaspace":
        space_before = outer["prepend_scheme"] != "never"
        if outer["replacement"] != "\u2581" or outer["split"]:
            return None
    else:
        return None
    order: dict[str, int] = {}
    splits: Counter[str] = Counter()
    previous = None
    for left, right in merging["merges"]:
        token = left + right
        if token != previous and token in order:
            return None
        order.setdefault(token, len(order) + 1)
        splits[token] += 1
        previous = token
    vocabulary = merging["vocab"]
    for token in order:
        ways = [
            i for i in range(1, len(token)) if token[:i] in vocabulary and token[i:] in vocabulary
        ]
        if splits[token] != len(ways):
            return None
    return Pieces({token: -float(place) for token, place in order.items()}, space_before)


def _pre_tokenizer(tokenizer: Any) -> str:
    """llama.cpp's name of how the tokenizer splits a text before it merges."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    outer = parts["pre_tokenizer"] or {"type": None}
    steps = []
    for step in outer.get("pretokenizers", [outer]):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            steps += [GPT2] if step["use_regex"] else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            steps.append("digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            steps.append(step["pattern"].get("Regex"))
        else:
            steps.append(step["type"])
    name = PRE_TOKENIZERS.get(tuple(steps))
    same_merging = parts["model"].get("ignore_merges", False) == (name == "llama-bpe")
    if parts["model"]["type"] != "BPE" or parts["normalizer"] or name is None or not same_merging:
        raise ValueError(
            "--to gguf writes tokenizers like those of Llama 2, Llama 3, SmolLM and GPT-2; this one is "
            f"{parts['model']['type']} and splits text by {steps}: {CONVERTER}"
        )
    return name


def _tensors(model: Any, gguf: Any, with_head: bool) -> Iterator[tuple[str, torch.Tensor]]:
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name.startswith("lm_head.") and (config.tie_word_embeddings or not with_head):
            continue
        turned = heads.get(name.split(".")[-2])
        if turned:
            weight = _pairs_together(weight, turned)
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        yield place, weight.float() if weight.dim() == 1 else weight
    if config.rope_parameters["rope_type"] == "llama3":
        angles = 1 / config.rope_parameters["rope_theta"] ** (
            torch.arange(0, config.head_dim, 2).float() / config.head_dim
        )
        place = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight"
        yield place, angles / model.model.rotary_emb.inv_freq.float()


def _pairs_together(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Put rows that rotary angles turn together side by side: llama.cpp has them at 2i and 2i + 1,
    transformers at i and i + half a head."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])  # (heads, 2, head / 2, ...)
    return halves.transpose(1, 2).reshape(weight.shape)
