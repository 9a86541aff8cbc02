"""Models: each against a loop over single sentences, and what a name stands for."""

import ast
import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from tiny import SENTENCES, SLIDING, make_model, plain
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evaluation import run
from evaluation.models import BATCH_SIZE, load_model
from evaluation.names import check_tokenizer, resolve, window_of
from modeling_magnet import MagnetLlamaForCausalLM

ROOT = Path(__file__).parents[2]
PACKAGES = ("modeling_magnet", "evaluation", "benchmarks", "examples")

PROMPT = "Find its topic: "
DEFAULT = "Given the sentence, find its representation: "
WORDS = [["A", "quiet", "harbour"], ["Nobody"], ["Größe", ",", "naïve", "12-year-old", "café", "!"]]
LLAMA = ("bidirectional", "last-token", "mean", "echo")


def make_bert(folder, positions: int = 64):
    """A random BERT of two layers with a WordPiece tokenizer, saved."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES, *map(" ".join, WORDS), PROMPT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=150, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=positions, initializer_range=0.3,
    )  # fmt: skip
    bert = BertModel(config).eval()
    bert.save_pretrained(folder)
    fast.save_pretrained(folder)
    return bert, fast


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A MAGNET folder, the same weights as a plain Llama, and a BERT."""
    root = tmp_path_factory.mktemp("models")
    model = make_model()
    model.save_pretrained(root / "magnet")
    plain = LlamaForCausalLM(LlamaConfig(**model.config.to_dict()))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(root / "llama")
    model.tokenizer.save_pretrained(root / "llama")
    make_bert(root / "bert")
    return root


def causal(model, ids):
    """Outputs of a plain causal pass without mask, map or padding."""
    return model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def ids_of(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def behind(model, before, text):
    """Tokens of `before`, and of the text behind it, where the tokenizer splits before spaces.

    A token that is the space between the two alone is none of the text's.
    """
    before = [0, *ids_of(model, before.rstrip())]
    tokens = ids_of(model, " " + text if len(before) > 1 else text)
    lone = model.tokenizer.decode(tokens[:1]) == " "
    return before + tokens[:lone], tokens[lone:]


@torch.no_grad()
def by_hand(model, kind, sentence, prompt):
    if kind == "last-token":
        return causal(model, [0, *ids_of(model, prompt + sentence), 1])[-1]
    if kind == "echo":
        prompt += f"Rewrite the sentence: {sentence}, rewritten sentence: "
    before, tokens = behind(model, prompt, sentence)
    return causal(model, before + tokens)[len(before) :].mean(dim=0)


@torch.no_grad()
def words_by_hand(model, kind, words, states):
    sentence = " ".join(words)
    prompt = f"Rewrite the sentence: {sentence}, rewritten sentence: " if kind == "echo" else ""
    before, tokens = behind(model, prompt, words[0])
    split = [tokens, *(ids_of(model, " " + word) for word in words[1:])]
    outputs = causal(model, before + [i for tokens in split for i in tokens])
    sizes = [len(tokens) for tokens in split]

    def means(states):
        return torch.stack([part.mean(dim=0) for part in states.split(sizes)])

    at, one_before = means(outputs[len(before) :]), means(outputs[len(before) - 1 : -1])
    return at if states == "paper" else torch.cat([one_before, at], dim=1)


@pytest.mark.parametrize("prompt", [None, "", PROMPT])
@pytest.mark.parametrize("kind", ["last-token", "mean", "echo"])
def test_causal_sentences_by_hand(folders, tiny, kind, prompt):
    model = load_model(f"{kind}:{folders / 'llama'}")
    vectors = model.encode(SENTENCES, prompt)
    default = "" if kind == "echo" else DEFAULT
    used = default if prompt is None else prompt
    expected = [by_hand(tiny, kind, sentence, used) for sentence in SENTENCES]
    np.testing.assert_allclose(vectors, torch.stack(expected), atol=1e-5)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 48)


@pytest.mark.parametrize("states", ["both", "paper"])
@pytest.mark.parametrize("kind", ["last-token", "mean", "echo"])
def test_causal_words_by_hand(folders, tiny, kind, states):
    model = load_model(f"{kind}:{folders / 'llama'}")
    for words, vectors in zip(WORDS, model.encode_words(WORDS, states), strict=True):
        np.testing.assert_allclose(vectors, words_by_hand(tiny, kind, words, states), atol=1e-5)
    with pytest.raises(ValueError, match="states is 'last': give 'both' or 'paper'"):
        model.encode_words(WORDS, "last")


@pytest.mark.parametrize("kind", ["mean", "echo"])
def test_causal_words_after_some_layers_are_those_of_a_model_with_only_these(folders, kind):
    model, short = (load_model(f"{kind}:{folders / 'llama'}") for _ in range(2))
    short.language_model.model.layers = short.language_model.model.layers[:1]
    for words, vectors in zip(WORDS, model.encode_words(WORDS, num_layers=1), strict=True):
        expected = words_by_hand(short.language_model, kind, words, "both")
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    with pytest.raises(ValueError, match="num_layers is 3"):
        model.encode_words(WORDS, num_layers=3)


def test_echo_reads_the_second_occurrence_alone(folders):
    """The words of the second occurrence have seen the whole sentence, so its end changes them."""
    mean, echo = (load_model(f"{kind}:{folders / 'llama'}") for kind in ("mean", "echo"))
    pair = [["A", "quiet", "harbour"], ["A", "quiet", "door"]]
    for model, same in ((mean, True), (echo, False)):
        first, second = model.encode_words(pair)
        assert np.allclose(first[:2], second[:2], atol=1e-6) == same
    assert not np.allclose(mean.encode(SENTENCES, ""), echo.encode(SENTENCES, ""), atol=1e-2)
    braces = echo.encode(["A {text} in {braces} {} {0}."])
    np.testing.assert_allclose(
        braces[0],
        by_hand(echo.language_model, "echo", "A {text} in {braces} {} {0}.", ""),
        atol=1e-5,
    )


def test_magnet_and_its_base_read_all_context(folders, tiny):
    magnet = load_model(f"magnet:{folders / 'magnet'}")
    base = load_model(f"bidirectional:{folders / 'llama'}")
    for model in (magnet, base):
        np.testing.assert_allclose(model.encode(SENTENCES), tiny.encode(SENTENCES), atol=1e-6)
        np.testing.assert_allclose(
            model.encode(SENTENCES, PROMPT), tiny.encode(SENTENCES, prompt=PROMPT), atol=1e-6
        )
        for states in ("both", "paper"):
            for row, expected in zip(
                model.encode_words(WORDS, states), tiny.encode_words(WORDS, states=states)
            ):
                np.testing.assert_allclose(row, expected, atol=1e-6)
        for row, expected in zip(
            model.encode_words(WORDS, num_layers=1), tiny.encode_words(WORDS, num_layers=1)
        ):
            np.testing.assert_allclose(row, expected, atol=1e-6)
    assert magnet.name == f"magnet:{folders / 'magnet'}"
    assert base.name == f"bidirectional:{folders / 'llama'}"
    assert type(magnet.language_model) is type(base.language_model) is type(tiny)


@torch.no_grad()
def test_an_encoder_by_hand(folders):
    bert = BertModel.from_pretrained(folders / "bert").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders / "bert")
    model = load_model(f"encoder:{folders / 'bert'}")
    assert model.language_model is None
    for prompt in (None, PROMPT):
        expected = []
        for sentence in SENTENCES:
            encoded = tokenizer((prompt or "") + sentence, return_tensors="pt")
            assert encoded["input_ids"][0, 0] == 2 and encoded["input_ids"][0, -1] == 3
            expected.append(bert(**encoded).last_hidden_state[0].mean(dim=0))
        vectors = model.encode(SENTENCES, prompt)
        np.testing.assert_allclose(vectors, torch.stack(expected), atol=1e-5)
    long = " ".join(SENTENCES)
    encoded = tokenizer(long, return_tensors="pt", truncation=True, max_length=64)
    with pytest.warns(UserWarning, match="1 of 1 texts were cut to 64 tokens"):
        vector = model.encode([long])[0]
    expected = bert(**encoded).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    several = 0
    for words, vectors in zip(WORDS, model.encode_words(WORDS)):
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        outputs, owners = bert(**encoded).last_hidden_state[0], encoded.word_ids(0)
        for k, vector in enumerate(vectors):
            own = [i for i, owner in enumerate(owners) if owner == k]
            several += len(own) > 1
            np.testing.assert_allclose(vector, outputs[own].mean(dim=0), atol=1e-5)
    assert several
    with pytest.raises(ValueError, match="is an encoder, which is read after all its layers"):
        model.encode_words(WORDS, num_layers=1)


def test_a_sentence_transformers_model(folders, tiny):
    name = f"sentence-transformers:{folders / 'magnet'}"
    with pytest.raises(ValueError, match="comes with code .*give --trust-remote-code"):
        load_model(name)
    model = load_model(name, trust_remote_code=True)
    assert model.language_model is None
    np.testing.assert_allclose(model.encode(SENTENCES), tiny.encode(SENTENCES), atol=1e-6)
    for prompt in ("", PROMPT):
        np.testing.assert_allclose(
            model.encode(SENTENCES, prompt), tiny.encode(SENTENCES, prompt=prompt), atol=1e-6
        )
    with pytest.raises(ValueError, match="sentence-transformers:.* has only sentence vectors"):
        model.encode_words(WORDS)


@pytest.fixture(scope="module")
def loaded(folders):
    names = [f"{kind}:{folders / 'llama'}" for kind in LLAMA]
    names += [f"magnet:{folders / 'magnet'}", f"encoder:{folders / 'bert'}"]
    names.append(f"sentence-transformers:{folders / 'magnet'}")
    return [load_model(name, trust_remote_code=True) for name in names]


def test_one_is_as_a_batch_in_the_order_given(loaded, capfd):
    texts = [" ".join(SENTENCES[i % 5].split()[: 1 + i % 7]) for i in range(BATCH_SIZE + 9)]
    for model in loaded:
        together = model.encode(texts)
        alone = np.concatenate([model.encode([text]) for text in texts])
        np.testing.assert_allclose(together, alone, atol=2e-5)
        assert together.dtype == np.float32 and len(np.unique(together.round(3), axis=0)) > 20
        assert model.encode([]).shape == (0, together.shape[1])
        if not model.name.startswith("sentence-transformers"):
            words = [text.split() for text in texts]
            for row, given in zip(model.encode_words(words), words):
                np.testing.assert_allclose(row, model.encode_words([given])[0], atol=2e-5)
                width = (1 if model.name.startswith("encoder") else 2) * together.shape[1]
                assert row.shape == (len(given), width) and row.dtype == np.float32
            assert model.encode_words([[]])[0].shape == (0, width)
            assert model.encode_words([]) == []
    assert "Encoding" not in capfd.readouterr().err
    loaded[2].encode(texts * 5)
    assert "Encoding" in capfd.readouterr().err


def test_long_texts_are_cut_aloud(loaded):
    """To what a shorter text gives; words, which would lose their vectors, raise."""
    long = " ".join(SENTENCES * 12)
    for model in loaded:
        with pytest.warns(UserWarning, match=r"^2 of 3 texts were cut to \d+ tokens") as warned:
            vectors = model.encode([long, SENTENCES[0], long + " more"])
        assert sum("were cut" in str(w.message) for w in warned) == 1
        np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(vectors[1], model.encode(SENTENCES[:1])[0], atol=1e-5)
        if not model.name.startswith("sentence-transformers"):
            with pytest.raises(ValueError, match="the limit is"):
                model.encode_words([SENTENCES[0].split(), long.split()])


@torch.no_grad()
def test_what_is_cut_fills_the_window(folders, tiny):
    long = " ".join(SENTENCES * 12)
    mean, echo = (load_model(f"{kind}:{folders / 'llama'}") for kind in ("mean", "echo"))
    with pytest.warns(UserWarning, match="1 of 1 texts were cut to 256 tokens"):
        vector = mean.encode([long], "")[0]
    expected = causal(tiny, [0, *ids_of(tiny, long)[:255]])[1:].mean(dim=0)
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="1 of 1 texts were cut to 256 tokens"):
        vector = echo.encode([long])[0]
    copies = [by_hand(tiny, "echo", long[:n].rstrip(), "") for n in range(150, 300)]
    distances = [float(np.abs(copy.numpy() - vector).max()) for copy in copies]
    best = long[: 150 + int(np.argmin(distances))].rstrip()
    assert min(distances) < 1e-5
    length = 1 + len(ids_of(tiny, f"Rewrite the sentence: {best}, rewritten sentence: {best}"))
    assert 250 <= length <= 256
    with pytest.raises(ValueError, match="text 0: .* leaves no room in 256 tokens"):
        mean.encode(["short"], long)


def test_a_folder_that_does_not_exist_is_called_so():
    for name in ("/no/such/folder", "magnet:no/such/folder", "encoder:no-folder/"):
        with pytest.raises(FileNotFoundError, match="'.*' is neither a folder nor a Hub id"):
            resolve(name)


def test_bare_names(folders, tmp_path):
    assert load_model(str(folders / "magnet")).name.startswith("magnet:")
    shutil.copytree(folders / "magnet", tmp_path / "mapped")  # known by its auto_map alone
    config = json.loads((tmp_path / "mapped" / "config.json").read_text())
    del config["magnet"]
    (tmp_path / "mapped" / "config.json").write_text(json.dumps(config))
    assert load_model(str(tmp_path / "mapped")).name.startswith("magnet:")
    assert load_model(str(folders / "bert")).name == f"encoder:{folders / 'bert'}"
    SentenceTransformer(str(folders / "bert")).save(str(tmp_path / "st"))
    model = load_model(str(tmp_path / "st"))
    assert model.name == f"sentence-transformers:{tmp_path / 'st'}"
    own_mean = load_model(str(folders / "bert")).encode(SENTENCES)
    np.testing.assert_allclose(model.encode(SENTENCES), own_mean, atol=1e-5)
    (tmp_path / "co:lon").symlink_to(folders / "bert")
    assert load_model(str(tmp_path / "co:lon")).name == f"encoder:{tmp_path / 'co:lon'}"


def test_an_adapter_folder_is_magnet(folders, tmp_path):
    base = MagnetLlamaForCausalLM.from_pretrained(folders / "magnet")
    adapted = get_peft_model(base, LoraConfig(init_lora_weights=False, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.name == f"magnet:{tmp_path}"
    vectors = adapted.merge_and_unload().encode(SENTENCES)
    np.testing.assert_allclose(model.encode(SENTENCES), vectors, atol=1e-5)


def test_smollm2_and_the_start_token(folders, tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "evaluation.models.load_base", lambda name, dtype: asked.append(name) or make_model()
    )
    model = load_model("last-token:smollm2", start_token="<pad>")
    assert asked == ["smollm2"]
    with torch.no_grad():
        expected = causal(tiny, [2, *ids_of(tiny, SENTENCES[0]), 1])[-1]
    np.testing.assert_allclose(model.encode(SENTENCES[:1], "")[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="smollm2 is a decoder .*, echo:smollm2"):
        load_model("smollm2")


@pytest.mark.parametrize("architecture", SLIDING)
def test_a_base_of_another_architecture(tmp_path, architecture):
    """It has every kind; its window is the sliding one, and longer texts are cut aloud."""
    model = make_model(architecture=architecture)
    plain(model).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    for kind in LLAMA:
        assert window_of(resolve(f"{kind}:{tmp_path}")) == 128
        model = load_model(f"{kind}:{tmp_path}", start_token="<s>")
        with pytest.warns(UserWarning, match="1 of 2 texts were cut"):
            assert model.encode(["harbour " * 100, "boats"]).shape == (2, 48)
    with pytest.raises(ValueError, match="is a decoder .*, no encoder"):
        resolve(str(tmp_path))


def test_errors_of_names(folders, tmp_path):
    llama = str(folders / "llama")
    with pytest.raises(
        ValueError, match="has the kind 'ecco': give one of magnet, bidirectional, "
    ):
        load_model(f"ecco:{llama}")
    choices = f"give one of bidirectional:{llama}, last-token:{llama}, mean:{llama}, echo:{llama}"
    for name, message in (
        (llama, f"llama is a decoder .llama., no encoder: of a decoder {choices}"),
        (f"encoder:{llama}", "is a decoder"),
        (
            f"magnet:{llama}",
            f"llama has no magnet settings, so is no MAGNET model: of a decoder {choices}",
        ),
        (str(tmp_path), "found no config.json in"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(name)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "t5", "is_encoder_decoder": True})
    )
    with pytest.raises(ValueError, match="is an encoder-decoder .t5.: give a BERT-like encoder"):
        load_model(f"encoder:{tmp_path}")


def test_errors_of_texts(loaded):
    for model in loaded:
        with pytest.raises(TypeError, match="got the string 'one': give a sequence"):
            model.encode("one")
        with pytest.raises(TypeError, match="text 1 is int"):
            model.encode(["one", 2])
        if not model.name.startswith("sentence-transformers"):
            with pytest.raises(TypeError, match="got the string 'one': give a sequence"):
                model.encode_words("one")
            with pytest.raises(ValueError, match="sentence 0 holds the empty word ' '"):
                model.encode_words([["one", " "]])
        if model.name.startswith(("mean", "echo")):
            with pytest.raises(ValueError, match="text 1 is '': .* has no tokens to average"):
                model.encode(["one", ""])
    encoder = next(s for s in loaded if s.name.startswith("encoder"))
    with pytest.raises(ValueError, match=r"the word '\\x01' of sentence 1 has no tokens"):
        encoder.encode_words([["one"], ["two", "\x01", "three"]])


@pytest.fixture
def own_code(folders, tmp_path):
    """A model of sentence-transformers with a module of its own, and a file that it writes when run."""
    SentenceTransformer(str(folders / "bert")).save(str(tmp_path / "st"))
    path = tmp_path / "st" / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["type"] = "own.Reader"
    path.write_text(json.dumps(modules))
    ran = tmp_path / "ran"
    (tmp_path / "st" / "own.py").write_text(
        "from sentence_transformers.models import Transformer\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class Reader(Transformer):\n    pass\n"
    )
    return tmp_path / "st", ran


def test_a_folder_s_own_code_runs_only_where_it_is_trusted(own_code, data, tmp_path, capsys):
    place, ran = own_code
    words = ["--model", place, "--tasks", "sts", "--data", data, "--output", tmp_path / "results"]
    assert run.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert f"{place} comes with code (own.Reader), which would run when it is loaded" in error
    assert "--trust-remote-code" in error and not ran.exists()
    assert run.main([*map(str, words), "--trust-remote-code"]) == 0 and ran.exists()


def test_a_tokenizer_s_own_code_is_not_asked_for(folders, tmp_path, monkeypatch):
    """Standard input, where transformers would ask, is not read: the known tokenizer is taken."""
    shutil.copytree(folders / "bert", tmp_path / "bert")
    path = tmp_path / "bert" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    path.write_text(json.dumps(config))
    (tmp_path / "bert" / "own.py").write_text("raise SystemExit('run')")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    name = f"encoder:{tmp_path / 'bert'}"
    check_tokenizer(resolve(name))
    found = load_model(name).encode(SENTENCES)
    np.testing.assert_array_equal(
        found, load_model(f"encoder:{folders / 'bert'}").encode(SENTENCES)
    )
    assert sys.stdin.read() == "y\n" * 9


def test_no_call_leaves_it_to_transformers_to_ask():
    """Without a word about trust, transformers asks on standard input, where a user's texts may come."""
    asks = []
    for path in [p for name in PACKAGES for p in (ROOT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = getattr(node.func.value, "id", "")
            named = [word.arg for word in node.keywords]
            loads = node.func.attr == "from_pretrained" and of.startswith("Auto")
            told = "trust_remote_code" in named or path.name == "checkpoint.py"  # by its arguments
            if loads and not told:
                asks.append(f"{path.relative_to(ROOT)}, line {node.lineno}")
    assert not asks
