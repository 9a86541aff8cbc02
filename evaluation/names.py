"""What a model's name such as `echo:FOLDER` stands for, found out without loading any weights."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file, has_file

from modeling_magnet.checkpoint import (
    ARCHITECTURES,
    PYPI,
    _base_of_adapter,
    _has_weights,
    _in_package,
    _refuse_stacked,
    _same_folder,
)
from modeling_magnet.checks import check_place
from modeling_magnet.settings import uniform_positions
from modeling_magnet.training.base import SMOLLM2, SMOLLM2_PLACE

DECODER_KINDS = ("bidirectional", "last-token", "mean", "echo")
KINDS = ("magnet", *DECODER_KINDS, "encoder", "sentence-transformers")
RUN_CODE = ("encoder", "sentence-transformers")
"""The kinds that are loaded with code of their own where it is trusted; decoders are read by Magnet's."""

GENERATING_KINDS = ("magnet", "bidirectional")
"""The kinds that language-model tasks measure. A baseline that reads the same decoder's sentences
in another way writes what that decoder writes."""


class ModelName(NamedTuple):
    """A kind of `KINDS`, and the folder or Hub id of the weights."""

    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"

    @property
    def generates(self) -> bool:
        """Whether language-model tasks measure it."""
        return self.kind in GENERATING_KINDS


def resolve(name: str) -> ModelName:
    """The kind and the place that a name stands for.

    Args:
        name: `KIND:FOLDER_OR_ID` with a kind of `KINDS`, or the folder or id alone of a MAGNET model,
            a sentence-transformers model or an encoder.

    Raises:
        ValueError: the kind is unknown, does not fit the model, or a plain decoder comes without one.
        OSError: there is no such folder or id.
    """
    kind, colon, place = name.partition(":")
    if not colon or (kind not in KINDS and Path(name).exists()):
        kind, place = _kind_of(name), name
    if kind not in KINDS:
        raise ValueError(f"{name!r} has the kind {kind!r}: give one of {', '.join(KINDS)}")
    if kind == "encoder":
        _check_encoder(place, _config_of(place))
    if kind == "magnet" and not _is_magnet(place, _config_of(place)):
        raise ValueError(
            f"{place} has no magnet settings, so is no MAGNET model: {_choices(place)}"
        )
    return ModelName(kind, place)


def check_code(name: ModelName, trust_remote_code: bool) -> None:
    """Raise a ValueError where an encoder loads only with code of its own, which is not trusted."""
    if trust_remote_code or name.kind not in RUN_CODE:
        return
    found = []
    if name.kind == "sentence-transformers" and has_file(name.place, "modules.json"):
        modules = json.loads(Path(str(cached_file(name.place, "modules.json"))).read_bytes())
        types = [module["type"] for module in modules]
        found = [type_ for type_ in types if not type_.startswith("sentence_transformers.")]
    config = _config_of(name.place)
    code = (config.get("auto_map") or {}).get("AutoModel")
    if code and (config.get("model_type") not in CONFIG_MAPPING or ".Magnet" in code):
        found.append(code)
    if found:
        raise ValueError(
            f"{name} comes with code ({', '.join(found)}), which would run when it is loaded: if you "
            "trust it, give --trust-remote-code"
        )


def check_tokenizer(name: ModelName, trust_remote_code: bool = False) -> None:
    """Raise a ValueError where a model comes without its tokenizer."""
    place = _base_of(name.place)
    if _package_of(place):
        try:
            _in_package(SMOLLM2_PLACE if place == SMOLLM2 else place)
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise ValueError(str(error)) from error
        return
    if name.kind == "sentence-transformers":  # its tokenizer may lie in a folder of a module
        return
    vocabulary = _config_of(place).get("vocab_size", 0)
    try:
        trusted = trust_remote_code and name.kind in RUN_CODE
        size = len(AutoTokenizer.from_pretrained(place, trust_remote_code=trusted))
    except Exception as error:
        raise ValueError(f"no tokenizer in {place} could be loaded: {error}") from error
    if size * 10 < vocabulary:  # what transformers makes up for a folder that has none
        raise ValueError(
            f"the tokenizer in {place} does not fit: it has {size} tokens, but the model {vocabulary}"
        )


def window_of(name: ModelName) -> int | None:
    """How many tokens a model reads at most, where its config says."""
    base = _base_of(name.place)
    config = _config_of(base)
    window = (config.get("magnet") or {}).get("max_length")
    if window or _package_of(base) or config.get("model_type") not in ARCHITECTURES:
        return window or config.get("max_position_embeddings")
    whole = AutoConfig.for_model(**config)
    limits = whole.max_position_embeddings, uniform_positions(whole)
    return min(limit for limit in limits if limit is not None)


def weights_of(name: ModelName) -> str:
    """What tells a checkpoint's weights from others: a digest of its files' dates, or its revision.

    Of an adapter its base's too.
    """
    if package := _package_of(name.place):
        return f"{name} {importlib.metadata.version(package)}"
    folder = Path(name.place)
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found = [
            (str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files
        ]
        digest = f"{name.kind} {hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]}"
        base = _base_of(name.place)
        return (
            digest
            if base == name.place
            else f"{digest} on {weights_of(ModelName(name.kind, base))}"
        )
    path = str(cached_file(name.place, "config.json"))
    return f"{name} {Path(path).parent.name}"


def _base_of(place: str) -> str:
    """The base of an adapter's folder; any other place is its own."""
    folder = Path(place)
    base = _base_of_adapter(folder)
    if base is None or (_same_folder(base, folder) and _has_weights(folder)):
        return place
    if _base_of_adapter(Path(base)) is not None:
        _refuse_stacked(base, place)
    return base


def _package_of(place: str) -> str | None:
    """The PyPI package that carries the weights, if one does."""
    if place == SMOLLM2:
        place = SMOLLM2_PLACE
    return place.removeprefix(PYPI).partition("/")[0] if place.startswith(PYPI) else None


def _kind_of(place: str) -> str:
    config = _config_of(place)
    if _is_magnet(place, config):
        return "magnet"
    if not _package_of(place) and has_file(place, "modules.json"):
        return "sentence-transformers"
    if not config:
        raise ValueError(f"found no config.json in {place}: give a model's folder or Hub id")
    _check_encoder(place, config)
    return "encoder"


def _config_of(place: str) -> dict[str, Any]:
    """The content of config.json; nothing for a folder that has none."""
    if _package_of(place):
        return {"model_type": "llama"}
    check_place(place)
    return PreTrainedConfig.get_config_dict(place)[0]


def _is_magnet(place: str, config: dict[str, Any]) -> bool:
    adapter = (Path(place) / "adapter_config.json").is_file()
    return adapter or "magnet" in config or ".Magnet" in str(config.get("auto_map"))


def _check_encoder(place: str, config: dict[str, Any]) -> None:
    kind, classes = config.get("model_type"), config.get("architectures") or []
    if kind in ARCHITECTURES or any(
        name.endswith(("ForCausalLM", "LMHeadModel")) for name in classes
    ):
        raise ValueError(f"{place} is a decoder ({kind}), no encoder: {_choices(place)}")
    if config.get("is_encoder_decoder"):
        raise ValueError(f"{place} is an encoder-decoder ({kind}): give a BERT-like encoder")


def _choices(place: str) -> str:
    return "of a decoder give one of " + ", ".join(f"{kind}:{place}" for kind in DECODER_KINDS)
