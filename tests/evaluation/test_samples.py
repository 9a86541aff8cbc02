"""The card's infillings are those of `model.infill`, all of them."""

from tiny import SENTENCES, make_model

from evaluation.common.texts import STORY_COLUMNS
from evaluation.studies import samples


def test_every_story_is_shown_as_infill_writes_it(tmp_path):
    model = make_model(max_position_embeddings=2048)
    model.save_pretrained(tmp_path / "model")
    stories = [SENTENCES, SENTENCES[::-1]]
    source, output = tmp_path / "stories.tsv", tmp_path / "infillings.md"
    source.write_text("\n".join("\t".join(row) for row in [STORY_COLUMNS, *stories]) + "\n")
    command = ["--model", tmp_path / "model", "--stories", source, "--output", output]
    samples.main([str(word) for word in command])
    lines = output.read_text().splitlines()
    assert len(lines) == 2
    for n, (story, line) in enumerate(zip(stories, lines), start=1):
        gap = next(gap for gap in (2, 3, 4) if f"*Missing: {story[gap - 1]}*" in line)
        written = model.infill(
            " ".join(story[: gap - 1]), " " + " ".join(story[gap:]), do_sample=False
        )
        assert f"{n}. {' '.join(story[: gap - 1])} **{' '.join(written.split())}** " in line
