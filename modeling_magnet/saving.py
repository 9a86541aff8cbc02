"""Saves a model as a complete folder, here and on the Hub."""

import glob
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from transformers.dynamic_module_utils import custom_object_save

from .atomic import atomic_write
from .checkpoint import CheckpointMixin
from .settings import MagnetSettings

MODEL_CARD = """---
library_name: transformers
pipeline_tag: sentence-similarity
tags: [magnet, text-infilling, text-generation, sentence-transformers]
widget:
- source_sentence: A cat sleeps on the warm stones.
  sentences:
  - The animal is resting in the sun.
  - A dog runs after a ball.
  - The price of bread has gone up.
---

# {title}

One model that encodes, infills and generates: a {architecture} with MAGNET's hybrid attention.

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
model.encode(["A cat sleeps.", "A dog runs."])  # one vector per sentence
model.encode_words("A cat sleeps.")  # one vector per word
model.infill("She opened the door and", " Then she ran.")  # the missing middle
inputs = model.tokenizer("Once upon a time", return_tensors="pt")
model.tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0])
```

In sentence-transformers: `SentenceTransformer("{name}", trust_remote_code=True).encode(...)`.
Without `trust_remote_code` the folder is a plain {architecture}.
"""

HUB_ARGUMENTS = (
    "repo_id",
    "private",
    "token",
    "commit_message",
    "commit_description",
    "revision",
    "create_pr",
)

TOKENIZER_EXTRAS = (
    "added_tokens.json",
    "additional_chat_templates",
    "chat_template.jinja",
    "special_tokens_map.json",
)
"""Files that a tokenizer may be saved with, and that it reads if they exist."""


class SavingMixin(CheckpointMixin):
    """`save_pretrained` and `push_to_hub`."""

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Write a complete folder: weights, config, tokenizer, this code, and what
        sentence-transformers reads.

        With `trust_remote_code=True` the folder loads as MAGNET by `AutoModel` and
        `AutoModelForCausalLM`, without it and in other tools as the plain base architecture.

        The files are put in place once all are complete, so an error or a full disk changes nothing. A
        kill leaves the old model, the new one, or, in the moment in which files are put in place, a
        `config.json` that every reader refuses. Files with other names stay, including weights of other
        variants. Only what would be read together with the new files is removed: the same variant in
        other shards, and an adapter next to whole weights.

        For a model with an unmerged adapter, only the adapter's weights are written, as with every
        transformers model. Everything else is as above, so the folder has this model's settings, not
        its base's. Without trust, `AutoPeftModelForCausalLM` opens it.

        A model without a tokenizer is saved without what needs one, with a warning.

        Args:
            save_directory: the folder.
            is_main_process: only the main process writes, which with `torch.distributed` must also be the
                first. Sharded weights are gathered; for them, call this in every process.
            push_to_hub: also upload what was written to `repo_id` (default: the folder's name), with the
                arguments of `push_to_hub`.
            kwargs: other arguments of transformers' `save_pretrained`.

        Raises:
            FileExistsError: `save_directory` is a file, or a link to nothing.

        Example:
            >>> model.save_pretrained("my-magnet")
            >>> same = AutoModel.from_pretrained("my-magnet", trust_remote_code=True)
        """
        if kwargs.get("distributed_checkpoint"):  # all processes write it in place, to resume from
            return super().save_pretrained(
                save_directory, is_main_process, push_to_hub=push_to_hub, **kwargs
            )
        target = Path(save_directory).absolute()
        if os.path.lexists(target) and not target.is_dir():
            raise FileExistsError(f"{target} is a file or a link to nothing: give a folder")
        hub = {k: kwargs.pop(k) for k in HUB_ARGUMENTS if k in kwargs} if push_to_hub else {}
        if not (is_main_process and _is_first_process()):
            if self._tp_size is not None:  # every process holds a part of the weights
                with tempfile.TemporaryDirectory() as nowhere:
                    super().save_pretrained(nowhere, is_main_process=False, **kwargs)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        stale = self._stale(kwargs.get("variant"))
        with atomic_write(target, stale) as temporary:
            super().save_pretrained(temporary, **kwargs)
            custom_object_save(self, temporary)
            self._write_around_weights(temporary, target.name)
            written = [path.name for path in temporary.iterdir()]
        if push_to_hub:
            self._upload(target, hub.pop("repo_id", target.name), written, stale, **hub)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, max_shard_size: str = "50GB", **kwargs
    ) -> CommitInfo:
        """Upload the folder that `save_pretrained` writes, in one commit.

        An existing model card in the repository is kept. What would be read together with the new files is
        removed, as in `save_pretrained`.

        Args:
            repo_id: `user/name`; created if it does not exist.
            max_shard_size: as in `save_pretrained`.
            kwargs: `private`, `token`, `commit_message`, `commit_description`, `revision`,
                `create_pr`.

        Returns:
            The commit: its address as a string, its hash as `oid`.

        Raises:
            TypeError: an argument is unknown.

        Example:
            >>> commit = model.push_to_hub("me/my-magnet", private=True)
        """
        unknown = set(kwargs) - set(HUB_ARGUMENTS)
        if unknown:
            raise TypeError(f"unknown arguments {sorted(unknown)}; known are {HUB_ARGUMENTS}")
        for name in self._bases_of_adapters():
            if os.path.isdir(name):
                warnings.warn(
                    f"the adapter's base is the folder {name}, which only this machine has: push the base "
                    "and name it in adapter_config.json, or push the merged model (magnet export --to "
                    "magnet)",
                    stacklevel=2,
                )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / repo_id.split("/")[-1]
            self.save_pretrained(path, max_shard_size=max_shard_size)
            written = [file.name for file in path.iterdir()]
            return self._upload(path, repo_id, written, self._stale(), **kwargs)

    def _upload(
        self,
        folder: Path,
        repo_id: str,
        written: list[str],
        stale: list[str],
        private=None,
        token=None,
        **kwargs,
    ) -> CommitInfo:
        """Upload the files written into a folder, and delete stale ones in the repository."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        kwargs.setdefault("commit_message", "Upload MAGNET model")
        if api.file_exists(repo_id, "README.md", revision=kwargs.get("revision")):
            kwargs["ignore_patterns"] = ["README.md"]
        elif "README.md" in written:
            self._write_card(folder, repo_id)  # under the name that it loads by
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[p for name in written for p in _with_content(glob.escape(name))],
            delete_patterns=[p for pattern in stale for p in _with_content(pattern)],
            **kwargs,
        )

    def _bases_of_adapters(self) -> list[str]:
        configs = self.peft_config.values() if self._saves_an_adapter else ()
        return [config.base_model_name_or_path or "" for config in configs]

    @property
    def _saves_an_adapter(self) -> bool:
        return getattr(self, "_hf_peft_config_loaded", False)

    def _stale(self, variant: str | None = None) -> list[str]:
        """Patterns of files that would be read together with the saved ones, or in their place.

        For weights, these are the same variant in other shards, and an adapter, which transformers loads
        onto any weights next to it.
        """
        if self._saves_an_adapter:
            return [*TOKENIZER_EXTRAS]
        dot = f".{glob.escape(variant)}" if variant else ""
        number = "[0-9]" * 5
        return [
            *TOKENIZER_EXTRAS,
            f"model{dot}.safetensors",
            f"model{dot}-{number}-of-{number}.safetensors",
            f"model.safetensors.index{dot}.json",
            "adapter_config.json",
            "adapter_model.safetensors",
        ]

    def _write_around_weights(self, folder: Path, name: str) -> None:
        """Write config, tokenizer, files of sentence-transformers and card."""
        if self._saves_an_adapter:  # of which transformers writes no config
            self.config.save_pretrained(folder)
        try:
            tokenizer = self.tokenizer
        except ValueError as error:
            warnings.warn(
                f"{error}. Saved weights, config and code, but not what needs a tokenizer: its files, "
                "those of sentence-transformers, and the card",
                stacklevel=3,
            )
            self._write_config(folder / "config.json", getattr(self.config, "magnet", None))
            return
        settings = self.magnet_settings
        tokenizer.save_pretrained(folder)
        self._write_config(folder / "config.json", settings.to_dict())
        self._write_sentence_transformers_files(folder, settings)
        if not self._saves_an_adapter:
            self._write_card(folder, name)

    def _write_card(self, folder: Path, name: str) -> None:
        card = MODEL_CARD.format(
            name=name, title=name.split("/")[-1], architecture=self._base_class_name()
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _base_class_name(self) -> str:
        """The class of transformers that opens the folder without remote code."""
        names = [
            c.__name__
            for c in type(self).__mro__
            if c.__module__.startswith("transformers.models.")
        ]
        return names[0]

    def _write_config(self, path: Path, settings: dict[str, Any] | None) -> None:
        config = json.loads(path.read_text(encoding="utf-8"))
        reference = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        config["architectures"] = [self._base_class_name()]
        config["auto_map"] = {"AutoModel": reference, "AutoModelForCausalLM": reference}
        if settings is not None:
            config["magnet"] = settings
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _write_sentence_transformers_files(self, folder: Path, settings: MagnetSettings) -> None:
        """Tell sentence-transformers to pass plain text, without a chat template, to `pool`.

        `pool` adds the start and the end token, so the tokenizer must not, and the window leaves room for
        them. Batches are padded, so a tokenizer without a padding token, such as Llama's, uses the end
        token there.
        """
        padding = {}
        if self.tokenizer.pad_token is None:
            end_token = self.tokenizer.convert_ids_to_tokens(settings.end_token_id)
            padding = {"processor_kwargs": {"pad_token": end_token}}
        files = {
            "modules.json": [
                {
                    "idx": 0,
                    "name": "0",
                    "path": "",
                    "type": "sentence_transformers.models.Transformer",
                }
            ],
            "sentence_bert_config.json": {
                "max_seq_length": settings.max_length - settings.special_tokens,
                "modality_config": {"text": {"method": "pool", "method_output_name": None}},
                "module_output_name": "sentence_embedding",
                "processing_kwargs": {
                    "text": {
                        "add_special_tokens": False,
                        "split_special_tokens": settings.split_special_tokens,
                    }
                },
                **padding,
            },
            "config_sentence_transformers.json": {
                "model_type": "SentenceTransformer",
                "prompts": settings.sentence_transformers_prompts,
                "default_prompt_name": settings.default_prompt_name,
                "similarity_fn_name": "cosine",
            },
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _is_first_process() -> bool:
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )


def _with_content(pattern: str) -> tuple[str, str]:
    """Patterns for the Hub, where a folder is only a prefix of its files' names."""
    return pattern, f"{pattern}/*"
