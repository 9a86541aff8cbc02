"""Markdown of the repository, read as a reader would use it: blocks, commands, links, anchors."""

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from typer.main import get_command
from typer.testing import CliRunner

from modeling_magnet.cli import app

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INCLUDE = re.compile(r'^--8<-- "([^":]+)"$', re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*?)(?: +\{ *#([\w-]+) *\})?$", re.MULTILINE)
SERVER = "http://localhost:8000"
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block: continued lines joined, comments behind them taken off."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.split("  #")[0].strip() for line in lines if line.strip()]


def markdown_files() -> list[Path]:
    """Every page of the repository."""
    folders = ("docs", "training", "evaluation", "examples", "benchmarks", "tests")
    found = [*ROOT.glob("*.md"), *(p for name in folders for p in (ROOT / name).rglob("*.md"))]
    return sorted(found)


def read(page: Path) -> str:
    """A page with what it includes."""
    text = page.read_text(encoding="utf-8")
    return INCLUDE.sub(lambda match: (ROOT / match[1]).read_text(encoding="utf-8"), text)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks that stand in the page itself."""
    return [Block(match[2], match[3]) for match in FENCE.finditer(page.read_text("utf-8"))]


def commands(*pages: Path) -> Iterator[str]:
    """Every shell command of pages."""
    for page in pages:
        for block in blocks(page):
            if block.language == "bash":
                yield from block.commands


def anchors(page: Path) -> set[str]:
    """What a link to a page may have behind its #."""
    text = FENCE.sub("", read(page))
    return {given or slug(title) for title, given in HEADING.findall(text)}


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and Python-Markdown both make it."""
    title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
    return re.sub(r"[^\w -]", "", title).strip().replace(" ", "-")


def dead_links(page: Path) -> list[str]:
    """The relative links of a page that point at nothing."""
    dead = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(target)
    return dead


def run_blocks(page: Path, run_commands: bool = False, server: str = SERVER) -> dict:
    """Run a page's Python blocks in order, in one namespace; and its `magnet` commands among them.

    Args:
        page: a Markdown file.
        run_commands: run them too.
        server: the address of the one that pages have at `SERVER`.

    Returns:
        The namespace that the blocks leave.
    """
    namespace: dict = {}
    for block in blocks(page):
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                text = block.text.replace(SERVER, server)
                exec(compile(text, str(page), "exec"), namespace)
        elif block.language == "bash" and run_commands:
            for command in block.commands:
                if command.startswith("magnet ") and not command.startswith("magnet serve "):
                    result = CliRunner().invoke(app, shlex.split(command)[1:])
                    assert result.exit_code == 0, f"{command}\n{result.output}"
    return namespace


def check_command(command: str) -> None:
    """Fail unless a command of the documentation is one that there is, with these options.

    To be called in the repository's root, which the paths in commands start from.
    """
    words = shlex.split(command)
    if words[:3] == ["accelerate", "launch", "--config_file"]:
        assert Path(words[3]).exists()
        words = ["python", *words[words.index("-m") :]]
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True)
    elif words[:3] == ["pip", "install", "-e"]:
        extra = words[3].removeprefix(".[").removesuffix("]")
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    elif words[:3] == ["pip", "install", "--no-deps"]:
        assert words[3] in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif words[0] == "pytest":
        assert all(Path(word).exists() for word in words[1:] if not word.startswith("-"))
    elif words[0] == "curl":
        pass  # tests/serve runs them
    elif words[0] == "magnet":
        group = get_command(app)
        with group.make_context("magnet", words[1:]) as context:
            name, subcommand, rest = group.resolve_command(context, words[1:])
            subcommand.make_context(name, rest, parent=context)  # parses, and runs nothing
    elif words[:3] == ["python", "-m", "modeling_magnet.training.train"]:
        from modeling_magnet.training.train import parse  # which takes seconds to import

        model, data, _ = parse([*words[3:], "--use_cpu"])
        assert model.model and (data.text or data.pairs)
    else:
        assert words[:2] == ["python", "-m"]
        sharing = [
            "evaluation.run",
            "evaluation.models",
            "modeling_magnet.training.teacher_vectors",
        ]
        names = [words[2], *sharing]  # whose flags others pass on
        modules = [ROOT / (name.replace(".", "/") + ".py") for name in names]
        text = "".join(module.read_text(encoding="utf-8") for module in modules)
        flags = re.findall(r'add(?:_argument)?\(\s*"(--[\w-]+)"', text)
        assert set(re.findall(r"--[\w-]+", command)) <= set(flags)


def printed_table(printed: str) -> dict[str, list[str]]:
    """The rows of the table of figures, by their first cell."""
    table = printed[printed.index("| | before |") :]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:2] == "| "]
    return {name: cells for name, *cells in rows[1:]}
