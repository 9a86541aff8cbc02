"""Reads and checks MAGNET's own settings of a checkpoint: one nested dict, `config.magnet`."""

import warnings
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from .masking import sliding_window
from .tokenizing import check_text

PAPER_PROMPTS = {
    "sentence": "Given the sentence, find its representation: ",
    "STS": "Retrieve semantically similar text: ",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts: ",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles: ",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles: ",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts: ",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles: ",
}
"""The paper's prompts by name: section 3.2.2 (`sentence`) and Table 8 (the tasks)."""


def uniform_positions(config: PreTrainedConfig) -> int | None:
    """How many positions the model treats alike, so that a text can be read in another order.

    Sliding-window layers do so within their window. LongRoPE (Phi-3) and dynamic RoPE change the angles
    of all positions once one of them exceeds a limit. Infilling would then decode a span with other angles
    than it read the context with, and a text's vector would depend on its batch.

    Returns:
        None: all positions.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [sliding_window(config)]
    for one in [rope] if "rope_type" in rope else rope.values():  # Gemma 3: one per kind of layer
        if one["rope_type"] == "longrope":
            limits.append(one["original_max_position_embeddings"])
        elif (
            one["rope_type"] == "dynamic"
        ):  # at the limit itself it keeps the last longer text's angles
            limits.append(config.max_position_embeddings - 1)
    return min((limit for limit in limits if limit is not None), default=None)


POOLINGS = ("end", "first", "mean", "weighted_mean")
"""How a sentence's vector is made from its states; see `MagnetSettings.pooling`."""

ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""The names that sentence-transformers looks for among prompts, for a query and for a document."""

MIN_LENGTH = 3
"""The smallest `max_length`."""


@dataclass(frozen=True)
class MagnetSettings:
    """The settings that a checkpoint was adapted with and must be used with.

    They are read from `config.magnet` and cannot be changed here: set
    `model.config.magnet = model.magnet_settings.to_dict() | {"pooling": "mean"}`.

    Attributes:
        start_token_id: the token that begins every sequence; None: no token. Base models differ in what
            they saw there; see `modeling_magnet.training.base.choose_start_token`.
        start_in_encode: whether it also begins what `encode` reads. With it, vectors depend less on the
            prompt (measured on SmolLM2, see `training/README.md`).
        end_token_id: the token appended to a sentence.
        pooling: `end`, a sentence's vector is the last hidden state at the end token (section 3.2.2);
            `first`, the one at the first token, which sees all others as BERT's does; `mean`, the mean
            of all its states but the start token's, prompt and end token included (as LLM2Vec trains);
            `weighted_mean`, the same where the n-th state weighs n (as SGPT trains).
        max_length: the longest sequence in tokens, including start, prompt and end. It limits `encode`
            and `infill`. `generate` without a span map is limited only by the base model.
        trained_length: the longest text in tokens that the checkpoint was adapted on. `encode` and
            `infill` warn beyond it, since a model adapted only on short texts gains nothing from the right
            side of longer ones, even if its base has more positions. None: unknown, no warning.
        prompts: named texts that can be put before a sentence.
        default_prompt_name: the prompt that `encode` uses when none is named. None: no prompt.
        split_special_tokens: whether a control token that is spelled out in a text or a prompt, such
            as `<|im_end|>`, is ordinary text. False: it is read as that token.
        matryoshka_dims: the numbers of leading dimensions that the vectors were trained to be cut to.
        matryoshka_layers: the numbers of layers after which they were trained to be taken.
    """

    start_token_id: int | None
    end_token_id: int
    max_length: int
    start_in_encode: bool = True
    pooling: str = "end"
    trained_length: int | None = None
    prompts: dict[str, str] = field(default_factory=lambda: dict(PAPER_PROMPTS))
    default_prompt_name: str | None = "sentence"
    split_special_tokens: bool = True
    matryoshka_dims: list[int] = field(default_factory=list)
    matryoshka_layers: list[int] = field(default_factory=list)

    def __post_init__(self):
        self._check_types()
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}: give one of {', '.join(POOLINGS)}")
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(
                f"default_prompt_name is {self.default_prompt_name!r}, but the prompts are "
                f"{sorted(self.prompts)}"
            )

    def _check_types(self) -> None:
        for name in ("start_token_id", "end_token_id", "max_length", "trained_length"):
            value = getattr(self, name)
            if value is None and name in ("start_token_id", "trained_length"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}: give a whole number")
        for name in ("start_in_encode", "split_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}: give true or false")
        for name in ("matryoshka_dims", "matryoshka_layers"):
            value = getattr(self, name)
            if not isinstance(value, list) or not all(type(n) is int and n > 0 for n in value):
                raise ValueError(f"{name} is {value!r}: give a list of whole numbers from 1 on")
        if not isinstance(self.prompts, dict) or not all(
            isinstance(text, str) for pair in self.prompts.items() for text in pair
        ):
            raise ValueError(f"prompts is {self.prompts!r}: give names and texts")
        if not isinstance(self.default_prompt_name, (str, type(None))):
            raise ValueError(f"default_prompt_name is {self.default_prompt_name!r}: give a name")
        if self.max_length < MIN_LENGTH:
            raise ValueError(
                f"max_length is {self.max_length}: give {MIN_LENGTH} or more, for a start token, a token and "
                "an end token"
            )
        if self.trained_length is not None and self.trained_length < 1:
            raise ValueError(f"trained_length is {self.trained_length}: give 1 or more, or null")

    @classmethod
    def resolve(
        cls, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
    ) -> "MagnetSettings":
        """Read the settings from `config.magnet`; the tokenizer decides the missing ones.

        Args:
            config: of the checkpoint; its `magnet` may be missing or hold some of the settings.
            tokenizer: of the same checkpoint.

        Raises:
            ValueError: an unknown setting or one of another type, neither config nor tokenizer names an
                end token, or `max_length` is over the model's positions or what it treats alike.
        """
        magnet = getattr(config, "magnet", None)
        if magnet is not None and not isinstance(magnet, dict):
            raise ValueError(f"config.magnet is {magnet!r}: give a dict of settings")
        given: dict[str, Any] = dict(magnet or {})
        unknown = set(given) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(
                f"config.magnet holds unknown settings {sorted(unknown)}; known are "
                f"{[f.name for f in fields(cls)]}"
            )
        given.setdefault("start_token_id", tokenizer.bos_token_id)
        given.setdefault("end_token_id", tokenizer.eos_token_id)
        alike = uniform_positions(config)
        positions = config.max_position_embeddings
        given.setdefault("max_length", positions if alike is None else min(positions, alike))
        if given["end_token_id"] is None:
            raise ValueError(
                "the tokenizer has no eos_token: encode() needs an end token; set "
                "tokenizer.eos_token, or end_token_id in config.magnet"
            )
        settings = cls(**given)
        if alike is not None and settings.max_length > alike:
            raise ValueError(
                f"max_length is {settings.max_length}, but the model's sliding window or RoPE allows "
                f"{alike} positions: set max_length in config.magnet to at most that"
            )
        if settings.max_length > positions:
            raise ValueError(
                f"max_length is {settings.max_length}, but the model has {positions} positions "
                "(max_position_embeddings): set max_length in config.magnet to at most that"
            )
        for name in ("start_token_id", "end_token_id"):
            token_id = getattr(settings, name)
            if token_id is not None and not 0 <= token_id < config.vocab_size:
                raise ValueError(
                    f"{name} is {token_id}, outside the model's vocabulary of {config.vocab_size}"
                )
        return settings

    @property
    def special_tokens(self) -> int:
        """How many tokens `encode` adds to a sentence and its prompt."""
        return 2 if self.start_in_encode and self.start_token_id is not None else 1

    def warn_beyond(self, length: int) -> None:
        """Warn if the longest text of a call is longer than `trained_length`.

        Args:
            length: of the longest text in tokens, gaps included.
        """
        if self.trained_length is not None and length > self.trained_length:
            warnings.warn(
                f"a text has {length} tokens, but this checkpoint was adapted on texts of up to "
                f"{self.trained_length}: sentence vectors and infillings are unreliable beyond that. "
                "Shorten the text, or adapt on longer blocks",
                stacklevel=4,
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as they go into `config.magnet`."""
        return asdict(self)

    @property
    def sentence_transformers_prompts(self) -> dict[str, str]:
        """The prompts, with one for what sentence-transformers calls queries and documents.

        If the checkpoint has no prompt of that name, this is the default prompt. Without an entry, its
        `encode_query` and `encode_document` would use no prompt at all.
        """
        texts = {role: self.prompt_text(self.prompt_name_of(role), None) for role in ROLES}
        return texts | self.prompts

    def prompt_name_of(self, role: str) -> str | None:
        """The name of the prompt for a `query` or a `document`; None: the default one."""
        return next((name for name in ROLES[role] if name in self.prompts), None)

    def prompt_text(self, prompt_name: str | None, prompt: str | None) -> str:
        """The text to put before a sentence.

        Args:
            prompt_name: a key of `prompts`.
            prompt: the text itself; `""` for none.

        Returns:
            The text, with the space at its end; `""` for no prompt.

        Raises:
            TypeError: `prompt` is not a string.
            ValueError: both are given, no prompt has that name, or `prompt` is not valid Unicode.
        """
        if prompt is not None:
            if prompt_name is not None:
                raise ValueError(f"got prompt_name={prompt_name!r} and prompt={prompt!r}: give one")
            return check_text(prompt, "prompt")
        name = prompt_name if prompt_name is not None else self.default_prompt_name
        if name is None:
            return ""
        if name not in list(self.prompts):  # a list, because the name may be unhashable
            raise ValueError(f"no prompt is named {name!r}: give one of {sorted(self.prompts)}")
        return self.prompts[name]
