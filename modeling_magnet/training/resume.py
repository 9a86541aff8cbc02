"""Lets a killed run resume: locks its folder, checks its settings, and finds the last complete checkpoint."""

import contextlib
import dataclasses
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from modeling_magnet.atomic import atomic_write
from modeling_magnet.locking import folder_lock

from .arguments import Arguments

logger = logging.getLogger(__name__)

FREE_TO_CHANGE = (
    "output_dir", "token_cache", "logging_dir", "report_to", "run_name", "disable_tqdm", "push_to_hub",
    "hub_model_id", "hub_token", "hub_private_repo", "save_total_limit", "save_steps",
    "dataloader_num_workers", "local_rank", "logging_steps", "log_level", "hub_strategy",
)  # fmt: skip
"""Settings that may change when a run resumes, because they change no result."""


def run_lock(output: Path, arguments: Arguments) -> contextlib.AbstractContextManager[None]:
    """Lock a run's folder against other runs. All processes of this run share it."""
    if arguments[2].process_index:
        return contextlib.nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    return folder_lock(output)


def claim(output: Path, arguments: Arguments) -> None:
    """Record the run's settings in its folder, or raise if it was started with others."""
    model, data, args = arguments
    mine = {"processes": args.world_size}
    for part in (dataclasses.asdict(model), dataclasses.asdict(data), args.to_dict()):
        mine |= {k: v for k, v in part.items() if k not in FREE_TO_CHANGE}
    mine = json.loads(json.dumps(mine, default=str, sort_keys=True))
    if changed := record_settings(output / "run.json", mine, "output_dir"):
        raise ValueError(
            f"{output} holds a run with other settings ({'; '.join(changed)}): give another "
            "output_dir, or delete that one"
        )


def record_settings(path: Path, settings: dict[str, Any], folder_setting: str) -> list[str]:
    """Record settings in a file or, if it exists, compare them with those that it holds.

    Args:
        path: of a JSON file, which may not exist yet.
        settings: anything that JSON can hold.
        folder_setting: the setting that names the folder, for messages.

    Returns:
        `NAME was ..., is ...` for each that differs.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}), so it is unknown which run {path.parent} holds: give another "
            f"{folder_setting}, or delete that one"
        ) from error
    return [
        f"{name} was {before.get(name)!r}, is {settings.get(name)!r}"
        for name in sorted(settings.keys() | before.keys())
        if settings.get(name) != before.get(name)
    ]


def last_complete_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that no kill, full disk or fault has left incomplete.

    The Trainer writes `trainer_state.json` last. Files are checked as far as their formats allow: sizes for
    safetensors, checksums for what torch saves.
    """
    steps = sorted(
        (path for path in output.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()),
        key=lambda path: -int(path.name.split("-")[-1]),
    )
    for folder in steps:
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            for path in folder.rglob("*.safetensors"):
                with safe_open(path, framework="pt"):
                    pass
            for path in (*folder.rglob("*.pt"), *folder.rglob("*.pth")):
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise ValueError(f"{path.name} has a wrong checksum")
        except Exception as error:
            logger.warning("%s is not complete, so it is not used: %s", folder, error)
            continue
        return str(folder)
    if steps:
        logger.warning("no checkpoint in %s is complete: the run starts from the beginning", output)
    return None
