"""The pages of docs/ do what they say: blocks run, commands exist, links lead somewhere, pictures are true."""

import doctest
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import documents
import oracle
import pytest
import torch
import yaml
from documents import ROOT, check_command, commands, dead_links, markdown_files, run_blocks
from test_model import add_lora
from tiny import SENTENCES, make_model

from docs import figures
from modeling_magnet import MagnetLlamaForCausalLM, __version__, load_magnet, masking
from modeling_magnet.training.from_arguments import check_arguments
from modeling_magnet.training.train import parse

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ELSEWHERE = {
    "share-on-the-hub": "tests/test_hub.py, which has a hub",
    "integrations": "tests/test_integrations.py, which has the packages",
    "sft-dpo": "tests/examples/test_preference.py, which has trl",
    "serve": "tests/serve, which has a server",
}
"""Pages whose Python blocks another test runs."""


def with_blocks(language: str) -> list[Path]:
    pages = [p for p in PAGES if language in {block.language for block in documents.blocks(p)}]
    return [page for page in pages if page.stem not in ELSEWHERE]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """What the pages presuppose: the quickstart's models, an adapter of one's own, some texts.

    The models are random and of two layers, with vectors as long as SmolLM2's, which the pages name.
    """
    desk = tmp_path_factory.mktemp("desk")
    outputs = desk / "outputs"
    model = make_model(hidden_size=576, max_position_embeddings=2048, tie_word_embeddings=True)
    for name in ("base", "model"):
        model.save_pretrained(outputs / "quickstart" / name)
    adapted = add_lora(MagnetLlamaForCausalLM.from_pretrained(outputs / "quickstart" / "base"))
    adapted.save_pretrained(outputs / "mine" / "adapter")
    adapted.tokenizer.save_pretrained(outputs / "mine" / "adapter")
    (desk / "texts.txt").write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    dev = ["score\tsentence1\tsentence2", "1\tA cat.\tA dog.", "4\tA cat.\tThe cat.", "2\tA.\tB."]
    (desk / "dev.tsv").write_text("\n".join(dev) + "\n", encoding="utf-8")
    gap = {"prefix": "The old", "suffix": " was quiet."}
    (desk / "gaps.jsonl").write_text(json.dumps(gap) + "\n", encoding="utf-8")
    return desk


@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(page, desk, monkeypatch):
    """Python, and what it says to type into a shell after `magnet`."""
    monkeypatch.chdir(desk)
    left = run_blocks(page, run_commands=True)
    claims = CLAIMS[page.stem]
    assert claims and all(claim(left, desk) for claim in claims)


CLAIMS = {
    "architectures": [
        lambda left, desk: issubclass(left["MagnetOlmoForCausalLM"], left["MagnetMixin"]),
    ],
    "index": [
        lambda left, desk: left["vectors"].shape == (2, 576) and left["words"].shape == (3, 1152),
        lambda left, desk: left["text"].startswith("Once upon a time"),
        lambda left, desk: (desk / "vectors.npy").exists(),
    ],
    "embed-a-corpus": [
        lambda left, desk: left["vectors"].shape == (3, 576) and left["query"].shape == (576,),
        lambda left, desk: left["nearest"] in left["passages"],
        lambda left, desk: len(left["shards"]) == 3 and left["whole"].shape == (5, 576),
    ],
    "threads": [
        lambda left, desk: all(
            (vector == left["model"].encode(text)).all()
            for text, vector in zip(left["texts"], left["vectors"], strict=True)
        ),
        lambda left, desk: abs(left["vectors"][0] - left["of_the_base"][0]).max() > 0.01,
        lambda left, desk: len(left["middles"]) == 3,
    ],
    "word-vectors": [
        lambda left, desk: left["words"].shape == (5, 1152) and left["given"][0].shape == (4, 1152),
        lambda left, desk: -1 <= left["similarity"] < 1,
        lambda left, desk: len((desk / "words.jsonl").read_text().splitlines()) == 5,
    ],
    "infill-a-document": [
        lambda left, desk: isinstance(left["middle"], str) and isinstance(left["guessed"], str),
        lambda left, desk: left["letter"].startswith("Dear Ms") and len(left["written"]) == 3,
        lambda left, desk: len(left["spans"]) == 2 and len(left["three"]) == 3,
        lambda left, desk: "middle" in (desk / "filled.jsonl").read_text(),
    ],
    "adapt-your-own": [
        lambda left, desk: left["vectors"].shape == (2, 576),
        lambda left, desk: left["as_the_base_writes"].shape[1] > left["inputs"]["input_ids"].shape[1],
    ],
    "train-in-python": [
        lambda left, desk: (desk / "outputs/python/model/adapter_config.json").exists(),
        lambda left, desk: left["found"].training_loss > 0,
        lambda left, desk: left["both"].state.global_step == 2 and left["result"].training_loss > 0,
        lambda left, desk: left["watched"].state.best_metric
        == max(line.get("eval_dev", -1) for line in left["watched"].state.log_history),
    ],
    "distil": [
        lambda left, desk: left["trainer"].state.log_history[-1]["train_loss"] > 0,
        lambda left, desk: left["model"].encode(left["texts"]).shape == (4, 576),
    ],
    "matryoshka": [
        lambda left, desk: left["short"].shape == (2, 64) and left["early"].shape == (2, 576),
        lambda left, desk: load_magnet(desk / "outputs/matryoshka/model").magnet_settings.matryoshka_dims
        == [64, 256, 576],
    ],
    "fine-tune": [
        lambda left, desk: left["triplets"].column_names == ["anchor", "positive", "negative"],
        lambda left, desk: left["difference"] == 0 and left["short"].shape == (3, 64),
        lambda left, desk: abs(
            left["tuned"].encode(left["texts"])
            - load_magnet(desk / "outputs/quickstart/model").encode(left["texts"])
        ).max() > 0.01,
        lambda left, desk: len(left["hits"]) == 1
        and isinstance(left["tuned"].infill("The", " sat.", span_length=2), str),
    ],
    "export": [
        lambda left, desk: type(left["plain"]).__name__ == "LlamaForCausalLM",
        lambda left, desk: left["vectors"].shape == (2, 576),
    ],
}  # fmt: skip
"""What a page's blocks must leave behind; a page with Python and none of it here fails."""


@pytest.mark.parametrize("command", commands(*PAGES))
def test_every_command_exists(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_command(command)


def test_the_configs_shown_are_configs(tmp_path):
    shown = [
        block for page in PAGES for block in documents.blocks(page) if block.language == "yaml"
    ]
    assert shown
    for block in shown:
        (tmp_path / "shown.yaml").write_text(block.text, encoding="utf-8")
        arguments = parse([str(tmp_path / "shown.yaml"), "--use_cpu", "--bf16", "false"])
        check_arguments(arguments)  # that a run has the data that its weights need
        model, _, args = arguments
        content = yaml.safe_load(block.text)
        assert model.model == content["model"] and args.output_dir == content["output_dir"]


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page):
    assert not dead_links(page)


def test_the_examples_of_the_span_map_are_true():
    result = doctest.testmod(masking)
    assert result.failed == 0 and result.attempted >= 4


def test_every_feature_of_the_comparison_names_a_test_that_exists():
    rows = re.findall(
        r"^\|([^|]+)\|([^|]+)\|(?:[^|]+\|){5}$",
        (DOCS / "peers.md").read_text("utf-8"),
        re.MULTILINE,
    )
    said = {feature.strip(): held for feature, held in rows if re.match(r" yes\b", held)}
    assert len(said) > 20
    for feature, held in said.items():
        found = re.search(r"`(tests/[\w/]+\.py)::(test_\w+)`", held)
        assert found, f"{feature}: no test is named"
        source = (ROOT / found[1]).read_text(encoding="utf-8")
        assert f"\ndef {found[2]}(" in source, f"{feature}: {found[0]} does not exist"


def test_a_dead_link_would_be_seen(tmp_path):
    (tmp_path / "there.md").write_text("# A heading, there\n\n```bash\n# none\n```\n")
    links = "[a](there.md) [b](there.md#a-heading-there) [c](https://example.org)"
    dead = "[d](gone.md) [e](there.md#none) ![f](gone.svg) [g](#gone)"
    (tmp_path / "page.md").write_text(f"{links} {dead}\n")
    found = dead_links(tmp_path / "page.md")
    assert found == ["gone.md", "there.md#none", "gone.svg", "#gone"]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]' builds the site")
    pytest.importorskip("mkdocstrings", reason="pip install -e '.[docs]' builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    model = (tmp_path / "site" / "api" / "model" / "index.html").read_text(encoding="utf-8")
    for name in ("encode", "infill", "infill_blanks", "forward", "push_to_hub", "tokenizer"):
        assert f'id="modeling_magnet.MagnetMixin.{name}"' in model
    arguments = (tmp_path / "site" / "api" / "training" / "index.html").read_text(encoding="utf-8")
    assert "Share of context tokens to select for MNTP" in arguments  # a field's help


# The pictures.


def cells(picture: Path) -> dict[tuple[str, int, int], str]:
    """The colour of each cell (panel, query, key) of an SVG."""
    found = {}
    for group in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}g"):
        place = re.fullmatch(r"([a-z-]+)\.(\d+)\.(\d+)", group.get("id", ""))
        if place:
            style = group[0].get("style", "")
            colour = re.search(r"fill: (#\w+)", style)
            assert colour, style
            found[place[1], int(place[2]), int(place[3])] = colour[1]
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    figures.main(folder)
    return folder


@pytest.mark.parametrize("name", ["masks.svg", "cache.svg"])
def test_the_pictures_are_what_the_script_draws(drawn, name):
    assert cells(DOCS / "images" / name) == cells(drawn / name)
    assert sorted(p.name for p in drawn.iterdir()) == sorted(
        p.name for p in (DOCS / "images").glob("*.svg")
    )


def test_the_masks_drawn_are_the_rule():
    """span[k] == 0 or (span[q] == span[k] and k <= q), cell by cell, against plain loops."""
    colours = cells(DOCS / "images" / "masks.svg")
    assert len(colours) == 4 * 8 * 8
    for panel, span_ids in figures.MASKS.items():
        rule = oracle.allowed(torch.tensor([span_ids]), torch.ones(1, 8, dtype=torch.bool))[0]
        for q in range(8):
            for k in range(8):
                seen = figures.colour(span_ids[k]) if rule[q, k] else figures.HIDDEN_COLOUR
                assert colours[panel, q, k] == seen, (panel, q, k)


def test_the_masks_drawn_are_the_paper_s_four():
    counts = {panel: int(figures.allowed(ids).sum()) for panel, ids in figures.MASKS.items()}
    one, two = 8 * 5 + 6, 8 * 4 + 3 + 3  # every query sees the context, a span itself causally
    assert counts == {"causal": 36, "bidirectional": 64, "one-span": one, "two-spans": two}


def test_the_cache_is_filled_in_the_order_drawn(tiny, monkeypatch):
    """The picture's order and positions are those that `infill` hands to `generate`."""
    span_ids = figures.MASKS["one-span"]
    order = figures.cache_order(span_ids)
    prefix, gap, suffix = 2, 3, 3  # tokens, as in the picture
    given = {}
    generate = type(tiny).generate

    def spy(self, **arguments):
        given.update(arguments)
        return generate(self, **arguments)

    monkeypatch.setattr(type(tiny), "generate", spy)
    tiny.config.magnet = {"start_token_id": None, "end_token_id": 1}
    tiny.infill("ab", "xyz", span_length=gap)
    assert given["input_ids"].shape == (1, prefix + suffix), "tokens differ from the picture"
    assert given["position_ids"][0].tolist() == order[: prefix + suffix]
    assert not given["span_ids"].any()
    assert order[prefix + suffix :] == list(range(prefix, prefix + gap))

    colours = cells(DOCS / "images" / "cache.svg")
    for q in range(8):
        for k in range(8):  # the same mask, rows and columns in another order
            assert colours["cache-order", q, k] == colours["text-order", order[q], order[k]]


def test_the_changelog_begins_with_the_version_that_is_installed():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, state = re.search(r"^## (\S+) \((.+)\)$", changelog, re.MULTILINE).groups()
    if state == "unreleased":  # until a release has a date
        assert __version__ == f"{version}.dev0"
    else:
        assert __version__ == version
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", state)
