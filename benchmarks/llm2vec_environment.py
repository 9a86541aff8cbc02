"""An environment for llm2vec, which needs an old transformers, and the model as that one reads it."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("llm2vec.txt")


def build_environment(folder: Path) -> str:
    """The interpreter of an environment with `llm2vec.txt`, made where it is not there.

    It sees the packages of this environment after its own, so torch, numpy and their kind are the
    same, and only the few that must be old are installed.

    Raises:
        RuntimeError: pip failed; with the end of what it said.
    """
    python = folder / "bin" / "python"
    done = folder / "done"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return str(python)
    venv.create(folder, with_pip=True, clear=True)
    (own,) = folder.glob("lib/python*/site-packages")
    behind = [path for path in sys.path if path.endswith("site-packages")]
    (own / "behind.pth").write_text("\n".join(behind) + "\n", encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError("pip: " + " ".join(run.stderr.strip().splitlines()[-3:]))
    done.write_text(wanted, encoding="utf-8")
    return str(python)


def write_folder(model: Path, folder: Path) -> None:
    """Write a Magnet folder's Llama for transformers 4.44: the same weights, names that it knows.

    Raises:
        ValueError: the model is no Llama with plain rotary embeddings.
    """
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", {})
    if config["model_type"] != "llama" or rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"{config['model_type']} with the rotary embeddings {rope.get('rope_type')}: llm2vec is "
            "compared on Llamas with plain ones"
        )
    for name in ("auto_map", "magnet", "dtype"):
        config.pop(name, None)
    config |= {"rope_theta": rope.get("rope_theta", 10000.0), "torch_dtype": "float32"}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", config)
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    merges = tokenizer["model"].get("merges", [])
    if merges and not isinstance(merges[0], str):  # pairs, since tokenizers 0.20
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in merges]
    _write(folder / "tokenizer.json", tokenizer)
    own = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")
    kept = {name: own[name] for name in names if own.get(name) is not None}
    kept |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _write(folder / "tokenizer_config.json", kept)
    for weights in model.glob("model*.safetensors*"):
        link = folder / weights.name
        link.unlink(missing_ok=True)
        os.symlink(weights.resolve(), link)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
