"""`magnet export --to gguf`: transformers and llama.cpp read the file and write the same tokens."""

import itertools
import json
import urllib.request
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
from test_model import add_lora
from tiny import SENTENCES, make_model
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.cli import exporting, gguf_file

TEXTS = [
    *SENTENCES,
    "In 1984, 27 people; x=1234567;",
    "  two spaces,\n\n\nlines\tand tabs \r\n",
    "it's WE'LL I'M don'T",
    "日本語 🙂🙂 naïve",
    " ",
    "<s>a</s>",
]
WRITTEN = 24


class XLlamaCpp:
    """llama.cpp in the wheel of xllamacpp, by its server in this process."""

    def __init__(self, path, embedding=False):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 512, 1, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.embedding = embedding
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def _post(self, path, **body):
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def tokenize(self, text):
        return self._post("/tokenize", content=text, add_special=True)["tokens"]

    def greedy(self, ids, end):
        return self._post(
            "/completion", prompt=ids, n_predict=WRITTEN, temperature=0, return_tokens=True
        )["tokens"]

    def encode(self, texts):
        rows = self._post("/embedding", content=texts, embd_normalize=-1)
        return np.float32([row["embedding"][0] for row in rows])


class LlamaCppPython:
    """llama.cpp as llama-cpp-python compiles it."""

    def __init__(self, path):
        from llama_cpp import Llama

        self.model = Llama(
            str(path), n_ctx=512, n_threads=1, n_threads_batch=1, type_k=0, type_v=0, verbose=False
        )

    def tokenize(self, text):
        return self.model.tokenize(text.encode(), add_bos=True, special=True)

    def greedy(self, ids, end):
        tokens = self.model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        return list(itertools.islice(itertools.takewhile(lambda t: t != end, tokens), WRITTEN))


@pytest.fixture(
    params=[("xllamacpp", XLlamaCpp), ("llama_cpp", LlamaCppPython)], ids=lambda p: p[0]
)
def llama_cpp(request):
    package, reader = request.param
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")  # llama_cpp is compiled: minutes
    return reader


def assert_writes_the_same(reader, model, texts):
    end = model.tokenizer.eos_token_id
    for text in texts:
        assert reader.tokenize(text) == model.tokenizer(text)["input_ids"], text
    for text in texts[:4]:
        ids = model.tokenizer(text)["input_ids"]
        settings = {"max_new_tokens": WRITTEN, "do_sample": False, "pad_token_id": end}
        expected = model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()
        assert len(expected) > 4
        written = reader.greedy(ids, end)
        assert [t for t in written if t != end] == [t for t in expected if t != end]


def split_by(*steps):
    """A change of the tiny tokenizer's pre-tokenizer, which is GPT-2's."""

    def change(model):
        backend = model.tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
        backend.model.ignore_merges = len(steps) == 2 and isinstance(steps[0], pre_tokenizers.Split)

    return change


def with_biases(model):
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)


def llama_2(normalizer=None, pre_tokenizer=None):
    """A tokenizer as Llama 2's, whose merges were made of sentencepiece's scores.

    As transformers 5 makes it, a space comes before a text that begins with neither a space nor a
    special token; of sentencepiece and llama.cpp it comes before every text.
    """

    def change(model):
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<unk>", "<s>", "</s>", *bytes_]
        trained.train_from_iterator(
            SENTENCES * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special)
        )
        vocab = trained.get_vocab()
        merges = [
            (token[:i], token[i:])
            for token in sorted(vocab, key=vocab.__getitem__)[len(special) :]
            for i in range(1, len(token))
            if token[:i] in vocab and token[i:] in vocab
        ]
        backend = Tokenizer(
            models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        if normalizer is not None:
            backend.normalizer = normalizer
        if pre_tokenizer is not None:
            backend.pre_tokenizer = pre_tokenizer
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        model.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
        )

    return change


def with_start_token(model):
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES_ALONE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SMOLLM = split_by(pre_tokenizers.Digits(individual_digits=True), BYTES)
LLAMA_3 = split_by(pre_tokenizers.Split(Regex(gguf_file.LLAMA3), "isolated"), BYTES_ALONE)
LLAMA_3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
SENTENCEPIECE_IDS = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
MODELS = {
    "plain": ({}, None),
    "tied, padded vocabulary": ({"tie_word_embeddings": True, "vocab_size": 352}, None),
    "biases, wide heads": (
        {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
        with_biases,
    ),
    "smollm": ({}, SMOLLM),
    "llama 3": ({"rope_parameters": LLAMA_3_ROPE}, LLAMA_3),
    "linear, start token": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        with_start_token,
    ),
    "llama 2": (
        SENTENCEPIECE_IDS,
        llama_2(
            normalizers.Sequence(
                [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            )
        ),
    ),
    "llama 2, newer file": (
        SENTENCEPIECE_IDS,
        llama_2(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_llama_cpp_writes_the_same(llama_cpp, tmp_path, case):
    config, change = MODELS[case]
    model = make_model(**config)
    if change:
        change(model)
    exporting.export(model, "gguf", tmp_path / "m.gguf")
    newer = case == "llama 2, newer file"
    texts = [text for text in TEXTS if not (newer and text.startswith((" ", "<s>")))]
    assert_writes_the_same(llama_cpp(tmp_path / "m.gguf"), model, texts)


def test_llama_cpp_writes_the_same_on_the_real_model(base_model, tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: the extra integrations")
    exporting.export(base_model, "gguf", tmp_path / "m.gguf")
    texts = ["Once upon a time", "def fibonacci(n):\n    "]
    assert_writes_the_same(XLlamaCpp(tmp_path / "m.gguf"), base_model, texts)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_reads_it(magnet, folder, tmp_path, dtype):
    place = add_lora(MagnetLlamaForCausalLM.from_pretrained(folder))
    place.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "m.gguf"
    result = magnet("export", tmp_path / "adapter", out, "--to", "gguf", "--dtype", dtype)
    assert f"wrote {out}, 0." in result.stderr and "0.0 MB" not in result.stderr
    merged = place.merge_and_unload().to(getattr(torch, dtype)).float().eval()
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=out.name, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=out.name)
    assert tokenizer.chat_template == merged.tokenizer.chat_template
    for text in SENTENCES:
        # version 5.5 adds a start token whatever the file says
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        assert inputs["input_ids"].tolist() == [merged.tokenizer(text)["input_ids"]]
        # float16 and bfloat16 round the sum of base and adapter, which is made in their precision
        atol = {"float32": 1e-5, "float16": 0.02, "bfloat16": 0.2}[dtype]
        difference = (found(**inputs).logits - merged(**inputs).logits).abs().max()
        print(f"largest difference {difference:.1e} in {dtype}")
        assert difference < atol


class InEightBits(gguf.GGUFWriter):
    """Writes matrices as `llama-quantize` makes them of the type Q8_0."""

    def add_tensor(self, name, tensor, raw_dtype=None, **arguments):
        if tensor.ndim == 2:
            raw_dtype = gguf.GGMLQuantizationType.Q8_0
            tensor = gguf.quants.quantize(tensor, raw_dtype)
        super().add_tensor(name, tensor, raw_dtype=raw_dtype, **arguments)


def cosine_distance(a, b):
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float((1 - (a * b).sum(axis=-1) / lengths).max())


ENCODERS = {
    "end": {},
    "first": {"pooling": "first"},
    "mean": {"pooling": "mean", "start_in_encode": False},
    "another start token": {"start_token_id": 2, "end_token_id": 0},
}


@pytest.mark.parametrize("settings", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("writer, most", [(gguf.GGUFWriter, 1e-4), (InEightBits, 1e-2)])
def test_llama_cpp_gives_the_vectors_of_encode(tmp_path, monkeypatch, writer, most, settings):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: the extra integrations")
    model = make_model(hidden_size=64)
    model.config.magnet = settings
    monkeypatch.setattr(gguf, "GGUFWriter", writer)
    expected = {None: model.encode(SENTENCES), 1: model.encode(SENTENCES, num_layers=1)}
    prompt = model.magnet_settings.prompts["sentence"]
    for num_layers in (None, 1):  # the first layers last: they are all that the model keeps
        file = tmp_path / f"{num_layers}.gguf"
        exporting.export(model, "gguf-encoder", file, num_layers)
        found = XLlamaCpp(file, embedding=True).encode([prompt + text for text in SENTENCES])
        distance = cosine_distance(found, expected[num_layers])
        print(f"largest cosine distance {distance:.1e} by {writer.__name__}")
        assert distance < most
    assert cosine_distance(expected[1], expected[None]) > 0.1


def test_an_encoder_s_file_says_how_it_is_read(tmp_path):
    model = make_model()
    exporting.export(model, "gguf", tmp_path / "plain.gguf")
    exporting.export(model, "gguf-encoder", tmp_path / "encoder.gguf")
    files = {
        name: gguf.GGUFReader(tmp_path / f"{name}.gguf").fields for name in ("plain", "encoder")
    }
    assert not {"llama.attention.causal", "llama.pooling_type"} & set(files["plain"])
    assert files["encoder"]["llama.attention.causal"].contents() is False
    assert files["encoder"]["llama.pooling_type"].contents() == gguf.PoolingType.LAST
    found = AutoModel.from_pretrained(tmp_path, gguf_file="encoder.gguf", dtype="float32")
    prompt = model.magnet_settings.prompts["sentence"]
    for text in SENTENCES:
        ids = [0, *model.text_tokenizer.ids([prompt + text])[0], 1]
        states = found(input_ids=torch.tensor([ids]), is_causal=False).last_hidden_state[0]
        np.testing.assert_allclose(states[-1].detach().numpy(), model.encode(text), atol=1e-4)
    for pooling in ("mean", "weighted_mean"):
        model.config.magnet = {"pooling": pooling}
        with pytest.raises(
            ValueError, match=f"without a start token; this is '{pooling}' with one"
        ):
            exporting.export(model, "gguf-encoder", tmp_path / "mean.gguf")


def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path):
    out = tmp_path / "m.gguf"
    refusals = {
        "architecture llama, not 'qwen2': use --to plain, and convert_hf_to_gguf.py": make_model(
            architecture="qwen2"
        ),
        "not 'yarn'": make_model(
            rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
        ),
        "hidden_act silu, not 'gelu'": make_model(hidden_act="gelu"),
        "tokenizers like those of Llama 2, Llama 3, SmolLM and GPT-2; this one is BPE": make_model(),
    }
    split_by(pre_tokenizers.WhitespaceSplit(), BYTES)(model := list(refusals.values())[-1])
    assert model.tokenizer("ab")["input_ids"]
    for message, model in refusals.items():
        with pytest.raises(ValueError, match=message):
            exporting.export(model, "gguf", out)
    assert not list(tmp_path.iterdir())


def test_the_file_is_new(magnet, folder, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"mine")
    result = magnet("export", folder, tmp_path / "m.gguf", "--to", "gguf", code=2)
    assert "m.gguf exists: give a new name" in result.stderr
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"


def test_rows_that_turn_together_stand_together():
    weight = torch.arange(8.0)[:, None]
    assert gguf_file._pairs_together(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    np.testing.assert_equal(gguf_file._pairs_together(torch.arange(4.0), 1).numpy(), [0, 2, 1, 3])
