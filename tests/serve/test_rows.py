"""A row's text is read while it is written."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_spaced_tokenizer, make_tokenizer

from modeling_magnet.serve.rows import Row, Rows
from modeling_magnet.tokenizing import TextTokenizer

DECODE = TextTokenizer(make_tokenizer()).decode
SPACED = TextTokenizer(make_spaced_tokenizer())


def tokens_from(first):
    return st.lists(st.integers(first, 349), max_size=20)


@given(
    written=st.one_of(
        st.tuples(st.just(DECODE), tokens_from(3)),
        st.tuples(st.just(SPACED.decode), tokens_from(259)),
        st.tuples(st.just(SPACED.continued.decode), tokens_from(259)),
    ),
    stop=st.lists(st.text("abe o", min_size=1, max_size=3), max_size=2),
)
@settings(deadline=None)
def test_what_is_emitted_is_the_text(written, stop):
    """Whatever the tokens, half characters among them, and up to the first stop string.

    Tokens of single bytes are left out of Llama 2's manner: its decoder takes back whole characters
    where a byte after them is none.
    """
    decode, tokens = written
    pieces = []
    row = Row(decode, len(tokens), [1], stop, emit=pieces.append)
    for token in [*tokens, 1]:
        row.add(token)
    whole = decode(row.tokens)
    ends = [whole.find(string) for string in stop if string in whole]
    assert row.text == whole[: min(ends, default=None)]
    assert "".join(pieces) == row.text
    assert all(pieces)


def test_a_row_ends_for_itself():
    """At an end token, at its limit, or when its client leaves; the batch goes on until all have."""
    rows = [Row(DECODE, 9, [1]), Row(DECODE, 2, [1]), Row(DECODE, 9, [1])]
    watching = Rows(rows)
    ended = []
    for tokens in ([40, 41, 42], [1, 43, 44], [45, 46, 47]):
        if tokens[0] == 45:
            rows[2].finish_reason = "cancelled"
        ended.append(watching(torch.tensor(tokens)[:, None], None).tolist())
    assert ended == [[False] * 3, [True, True, False], [True] * 3]
    assert [row.tokens for row in rows] == [[40], [41, 43], [42, 44]]
    assert [row.finish_reason for row in rows] == ["stop", "length", "cancelled"]


def test_a_guess_that_is_cut_comes_in_one_piece():
    pieces = []
    row = Row(DECODE, 4, emit=pieces.append, is_guess=True)
    for token in [40, 41, 42, 43]:
        row.add(token)
    assert (row.finish_reason, pieces) == ("length", [])
    row.end(DECODE([40, 41, 42]))
    assert (row.tokens, row.finish_reason) == ([40, 41, 42], "stop")
    assert pieces == [row.text] == [DECODE([40, 41, 42])]
