"""A tiny random Llama with a real tokenizer, made in no time."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from modeling_magnet import MagnetLlamaForCausalLM

SENTENCES = [
    "The old harbour was quiet before the boats came home.",
    "A cat sleeps on the warm stones near the door.",
    "She counted twelve lanterns, and then the rain began!",
    "Nobody in the village remembered who had built the bridge.",
    "Größe and naïve façades: the café opened at 7.",
]

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


def make_model(seed: int = 0, **config) -> MagnetLlamaForCausalLM:
    """A random Llama of two layers, with grouped key-value heads."""
    settings = {
        "vocab_size": 350,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    model = MagnetLlamaForCausalLM(LlamaConfig(**(settings | config)))
    model.tokenizer = make_tokenizer()
    return model.eval()
