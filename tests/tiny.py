"""Tiny random models with a real tokenizer, made in no time."""

import io
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, LlamaTokenizer, PreTrainedTokenizerFast

from modeling_magnet import MagnetMixin, magnet_class_for

SENTENCES = [
    "The old harbour was quiet before the boats came home.",
    "A cat sleeps on the warm stones near the door.",
    "She counted twelve lanterns, and then the rain began!",
    "Nobody in the village remembered who had built the bridge.",
    "Größe and naïve façades: the café opened at 7.",
]

WINDOW = 128
ARCHITECTURES: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen2 sliding": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "qwen3": {"head_dim": 12},
    "mistral": {"sliding_window": None},
    "mistral sliding": {"sliding_window": WINDOW},
    "gemma2": {
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 1.0,  # low enough for random weights to reach
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {},
    "phi3": {},
}
"""Settings of one tiny model of each `model_type`, and of those that may have a sliding window."""

WITHOUT_SDPA = ["gemma2"]
"""Their cap on attention scores is not in sdpa. Eager takes its softmax in float32."""

SLIDING = [name for name, settings in ARCHITECTURES.items() if settings.get("sliding_window")]

CHAT_TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, as instruction-tuned Llamas have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


SPACED_DECODER = decoders.Sequence([
    decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
])  # fmt: skip
"""Of tokenizers in the manner of Llama 2, which take the space again that they put before a text."""


def make_spaced_tokenizer(unigram: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer.json in the manner of Llama 2's, whose normalizer puts a space before each text.

    A Unigram model has the control tokens among its words.
    """
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [f"▁{word}" for word in " ".join(SENTENCES).split()]
    letters = sorted(set("".join(SENTENCES)) - {" "})
    pieces += ["▁", *letters, *dict.fromkeys([*words, "</", "▁c", "ts"])]
    if unigram:
        scores = [0.0] * len(special) + [
            -float(20 / len(piece)) for piece in pieces[len(special) :]
        ]
        model = models.Unigram(list(zip(pieces, scores)), unk_id=0, byte_fallback=True)
    else:
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=pieces[:259],
            show_progress=False,
            initial_alphabet=letters,
        )
        spaced = Tokenizer(models.BPE())
        spaced.pre_tokenizer = pre_tokenizers.Metaspace()
        spaced.train_from_iterator(SENTENCES * 3, trainer)
        trained = json.loads(spaced.to_str())["model"]
        model = models.BPE(
            vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]],
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = SPACED_DECODER
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make_sentencepiece_tokenizer(folder: Path) -> LlamaTokenizer:
    """A real SentencePiece model, trained as Llama 2's was, in the class that transformers reads it by."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=written, vocab_size=350,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return LlamaTokenizer.from_pretrained(folder)


def make_model(
    seed: int = 0, architecture: str = "llama", num_hidden_layers: int = 2, **config
) -> MagnetMixin:
    """A random model of two layers, with grouped key-value heads; a Llama, or of `ARCHITECTURES`."""
    settings = {
        "vocab_size": 350,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    own = ARCHITECTURES[architecture]
    if "layer_types" in own:
        own = own | {"layer_types": own["layer_types"][:num_hidden_layers]}
    whole = AutoConfig.for_model(architecture.split()[0], **(settings | own | config))
    torch.manual_seed(seed)
    model = magnet_class_for(whole)(whole)
    model.tokenizer = make_tokenizer()
    return model.eval()


def plain(model: MagnetMixin):
    """The class of transformers that the model is without MAGNET, with the same weights."""
    stock = next(c for c in type(model).__mro__ if c.__module__.startswith("transformers.models."))
    base = stock(model.config).to(model.dtype)
    base.load_state_dict(model.state_dict())
    base.generation_config = model.generation_config
    return base.eval()
