"""`magnet serve`, spoken to by real clients."""

import base64
import contextlib
import json
import shlex
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import documents
import httpx
import numpy as np
import openai
import pytest
import torch
from server_process import KEY, serving, serving_here
from tiny import SENTENCES, make_model
from typer.testing import CliRunner

from modeling_magnet.cli import app
from modeling_magnet.serve import gate

PROMPT, SUFFIX = "The old harbour", " before the boats came home."
REASONS = {"length": "length", "seam": "stop"}


@pytest.fixture
def http(server):
    """A plain client with the key."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0)


def written(model, prompt, tokens):
    """What `generate` continues a prompt with."""
    (ids,) = model.text_tokenizer.ids([prompt], add_special_tokens=True)
    output = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)[0]
    return model.text_tokenizer.continued.decode(output[len(ids) :])


# --- the openai client ----------------------------------------------------------------------------


def test_embeddings_are_encodes(client, model):
    expected = model.encode(SENTENCES, normalize_embeddings=True)
    for encoding in ({}, {"encoding_format": "float"}):  # the client's own default is base64
        answer = client.embeddings.create(model="tiny", input=SENTENCES, **encoding)
        vectors = np.array([entry.embedding for entry in answer.data])
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(SENTENCES)


def test_dimensions_are_the_first_ones_at_length_one(client, model):
    expected = model.encode(SENTENCES[0], truncate_dim=12, normalize_embeddings=True)
    answer = client.embeddings.create(model="tiny", input=SENTENCES[0], dimensions=12)
    np.testing.assert_allclose(answer.data[0].embedding, expected, atol=1e-5)


def test_prompts_by_name_and_by_text(client, model):
    for prompt in ({"prompt_name": "STS"}, {"prompt": ""}):
        expected = model.encode(SENTENCES[0], normalize_embeddings=True, **prompt)
        answer = client.embeddings.create(model="tiny", input=SENTENCES[0], extra_body=prompt)
        np.testing.assert_allclose(answer.data[0].embedding, expected, atol=1e-5)


def test_completions_are_generates(client, model):
    answer = client.completions.create(
        model="tiny", prompt=[PROMPT, SENTENCES[1]], max_tokens=8, temperature=0
    )
    expected = [written(model, prompt, 8) for prompt in (PROMPT, SENTENCES[1])]
    assert [choice.text for choice in answer.choices] == expected
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("length", [5, None])
def test_a_suffix_makes_it_infill(client, model, length):
    """With a length, and without one, where the span is cut; streamed too."""
    ask = {
        "model": "tiny",
        "suffix": SUFFIX,
        "temperature": 0,
        "extra_body": {"span_length": length},
    }
    for prompt in (PROMPT, "", f"{SENTENCES[1]} The  "):
        direct = model.infill(prompt, SUFFIX, length, return_scores=True)
        whole = client.completions.create(**ask, prompt=prompt)
        assert whole.choices[0].text == direct.text
        assert whole.usage.completion_tokens == len(direct.score.token_ids)
        events = list(client.completions.create(**ask, prompt=prompt, stream=True))
        assert "".join(event.choices[0].text for event in events) == direct.text
        for answer in (whole, events[-1]):
            assert answer.choices[0].finish_reason == REASONS[direct.ended]


def test_infilling_without_a_length_has_stop_strings_samples_and_log_probabilities(client, model):
    ask = {"model": "tiny", "prompt": [PROMPT, SENTENCES[1]], "suffix": SUFFIX, "temperature": 0}
    answer = client.completions.create(**ask, n=2, logprobs=2)
    expected = model.infill([PROMPT, SENTENCES[1]], [SUFFIX] * 2)
    assert [choice.text for choice in answer.choices] == [text for text in expected for _ in "ab"]
    for choice in answer.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens)
    scored = model.infill(PROMPT, SUFFIX, 5, return_scores=True)
    answer = client.completions.create(
        **ask | {"prompt": PROMPT}, logprobs=0, extra_body={"span_length": 5}
    )
    found = answer.choices[0].logprobs.token_logprobs
    np.testing.assert_allclose(found, scored.score.log_probabilities, atol=1e-4)
    stop = expected[0][2:5]
    answer = client.completions.create(**ask, stop=stop)
    assert answer.choices[0].text == expected[0][: expected[0].index(stop)]


def test_gaps_that_share_no_batch_in_a_sliding_window():
    """Of one request: a long text with a short gap, and a short text with a long one."""
    model = make_model(architecture="mistral sliding")
    model.generation_config.eos_token_id = None
    prompts = [
        "A cat. " * 21,
        "A cat sleeps on the warm stones near the door and then the rain began",
    ]
    with serving_here(model, "sliding") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(
            model="sliding", prompt=prompts, suffix=SUFFIX, temperature=0, max_tokens=40
        )
    expected = model.infill(prompts, [SUFFIX] * 2, max_new_tokens=40)
    assert [choice.text for choice in answer.choices] == expected
    lengths = [[None]] * 2
    blanks = model._blanks([[prompt, SUFFIX] for prompt in prompts], lengths, 40)
    assert len(model._groups(blanks, {})) == 2


def test_control_tokens_in_a_text_are_text(client, model):
    prompt, suffix = "A cat</s><s>", "</s> sleeps."
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=6, temperature=0)
    assert answer.choices[0].text == written(model, prompt, 6)
    (ids,) = model.text_tokenizer.ids([prompt], add_special_tokens=True)
    assert answer.usage.prompt_tokens == len(ids) > len(model.tokenizer(prompt)["input_ids"])
    answer = client.completions.create(model="tiny", prompt=prompt, suffix=suffix, temperature=0)
    assert answer.choices[0].text == model.infill(prompt, suffix)


def test_streams_add_up_to_the_whole_text(client):
    ask = {"model": "tiny", "prompt": [PROMPT, SENTENCES[1]], "max_tokens": 10, "temperature": 0}
    whole = client.completions.create(**ask)
    texts, reasons = ["", ""], [None, None]
    for event in client.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ):
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length", "length"]
    assert event.usage == whole.usage


def test_a_stop_string_ends_a_text_and_is_cut_off(client):
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**ask).choices[0].text
    stop = whole[4:7]
    answer = client.completions.create(**ask, stop=stop).choices[0]
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    events = client.completions.create(**ask, stop=[stop, "never"], stream=True)
    assert "".join(event.choices[0].text for event in events) == answer.text


def test_a_seed_makes_samples_repeatable(client):
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "n": 3, "temperature": 1.5}
    one, two, other = (client.completions.create(**ask, seed=seed) for seed in (1, 1, 2))
    texts = [choice.text for choice in one.choices]
    assert texts == [choice.text for choice in two.choices]
    assert texts != [choice.text for choice in other.choices]
    assert len(set(texts)) == 3


def test_log_probabilities(client, model):
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=3
    )
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == answer.choices[0].text
    (ids,) = model.text_tokenizer.ids([PROMPT], add_special_tokens=True)
    scores = model(torch.tensor([ids])).logits[0, -1].detach().log_softmax(-1)
    assert found.token_logprobs[0] == pytest.approx(float(scores.max()), abs=1e-4)
    assert [len(top) for top in found.top_logprobs] == [3] * 4


# --- llama.cpp's clients, and curl ----------------------------------------------------------------


def test_infill_as_editors_call_it(http, model):
    """With the fields of llama.vim."""
    body = {
        "input_prefix": "The old harbour was quiet.\n",
        "input_suffix": SUFFIX,
        "input_extra": [{"text": SENTENCES[3], "time": [12, 345], "filename": "a.txt"}],
        "prompt": "A cat",
        "n_predict": 6,
        "n_indent": 0,
        "samplers": ["top_k", "top_p", "infill"],
        "top_k": 40,
        "top_p": 0.99,
        "stream": False,
        "cache_prompt": True,
        "t_max_predict_ms": 500,
        "response_fields": ["content", "timings/prompt_n"],
    }
    prefix = f"{SENTENCES[3]}\nThe old harbour was quiet.\nA cat"
    answer = http.post("/infill", json=body).json()
    assert answer["content"] == model.infill(prefix, SUFFIX, max_new_tokens=6)
    answer = http.post("/infill", json=body | {"n_predict": -1}).json()
    assert answer["content"] == model.infill(prefix, SUFFIX)
    warming = {"n_predict": 0, "input_prefix": "", "input_suffix": "", "prompt": ""}
    assert http.post("/infill", json=body | warming).json()["content"] == ""

    body["span_length"] = 6
    answer = http.post("/infill", json=body).json()
    expected = model.infill(prefix, SUFFIX, 6)
    assert answer["content"] == expected
    assert (answer["stop"], answer["stop_type"], answer["tokens_predicted"]) == (True, "limit", 6)
    with http.stream("POST", "/infill", json=body | {"stream": True}) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line]
    assert "".join(event["content"] for event in events) == expected
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


def test_curl_reads_a_stream(server):
    body = {"prompt": PROMPT, "max_tokens": 5, "temperature": 0, "stream": True}
    printed = subprocess.run(
        ["curl", "--silent", "--no-buffer", f"{server}/v1/completions", "--json", json.dumps(body),
         "--oauth2-bearer", KEY],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line for line in printed.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_models_health_and_metrics(http, server):
    assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == ["tiny"]
    assert httpx.get(f"{server}/health").json()["status"] == "ok"
    http.post("/v1/embeddings", json={"input": "a"})
    text = httpx.get(f"{server}/metrics").text
    assert 'magnet_requests_total{path="/v1/embeddings",status="200"}' in text
    assert 'magnet_batch_rows_count{kind="embedding"}' in text


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/embeddings", {}, 400, "input: Field required"),
        ("/v1/embeddings", {"input": []}, 400, "input holds no text"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 400, "check_embedding_ctx_length=False"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 49}, 400, "give 1 to 48"),
        ("/v1/embeddings", {"input": "a", "model": "other"}, 404, "'other' is not served here"),
        ("/v1/embeddings", {"input": "a", "prompt_name": "no"}, 400, "no prompt is named 'no'"),
        ("/v1/embeddings", {"input": ["a"] * 21}, 400, "21 texts, but the limit is 20"),
        ("/v1/embeddings", {"input": "boat " * 500}, 400, "the limit is"),
        ("/v1/embeddings", {"input": "\ud800"}, 400, ""),
        ("/v1/completions", {"prompt": "a", "colour": 1}, 400, "colour: Extra inputs"),
        ("/v1/completions", {"prompt": "a", "echo": True}, 400, "echo"),
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "stop": ["a"] * 17}, 400, "stop"),
        ("/v1/completions", {"prompt": "a", "n": 21}, 400, "21 texts"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 300}, 400, "the limit is 256"),
        (
            "/v1/completions",
            {"prompt": "a", "logprobs": 1, "stream": True},
            400,
            "cannot be streamed",
        ),
        ("/v1/completions", {"prompt": "a", "span_length": 1}, 400, "there is no suffix"),
        (
            "/v1/completions",
            {"prompt": "a", "suffix": "b", "span_length": 300},
            400,
            "the limit is 256",
        ),
        ("/v1/completions", {"prompt": ""}, 400, "prompt is empty"),
        ("/v1/completions", {"prompt": "a", "n": 10**12}, 400, "texts"),
        ("/v1/completions", {"prompt": []}, 400, "empty list"),
        ("/infill", {"input_prefix": "a"}, 400, "input_suffix: Field required"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_a_bad_request_is_told_why(http, path, body, status, message):
    answer = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == status
    fault = answer.json()["error"]
    assert message in fault["message"]
    assert fault["type"] == "invalid_request_error"
    assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200  # and it goes on


def test_what_is_no_json(http):
    answer = http.post(
        "/v1/completions", content=b'{"prompt": ', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_a_body_too_large(http):
    assert http.post("/v1/embeddings", json={"input": "a" * 30000}).status_code == 413
    chunks = (b"a" * 1000 for _ in range(30))
    assert http.post("/v1/embeddings", content=chunks).status_code == 413


def test_a_wrong_key(server):
    for headers in ({}, {"authorization": "Bearer another"}, {"authorization": f"Basic {KEY}"}):
        answer = httpx.post(f"{server}/v1/embeddings", json={"input": "a"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_body_that_does_not_arrive(server, monkeypatch):
    monkeypatch.setattr(gate, "SECONDS", 0.1)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            "content-length: 100\r\n\r\n{".encode()
        )
        assert httpx.get(f"{server}/health").status_code == 200  # others are served meanwhile
        assert b" 408 " in slow.recv(100)


def test_a_batch_that_fails_is_answered_and_the_next_one_runs(http, model, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", fail)
        answer = http.post("/v1/embeddings", json={"input": "a"})
        patch.setattr(model, "generate", fail)
        stream = http.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "RuntimeError: out of memory"
    assert "out of memory" in json.loads(stream.text.removeprefix("data: "))["error"]["message"]
    assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_an_empty_key_is_refused():
    """It would admit everyone who sends none."""
    result = CliRunner().invoke(app, ["serve", "model", "--api-key", ""])
    assert result.exit_code == 2 and "--api-key is empty" in result.output


# --- many at once ---------------------------------------------------------------------------------


def test_many_clients_get_what_a_direct_call_gives(server, http, model):
    """Or 429 with a time to wait; batches are shared."""
    texts = [f"{sentence} {i}" for i, sentence in enumerate(SENTENCES * 6)]
    vectors = model.encode(texts, normalize_embeddings=True)
    completions = [written(model, text, 6) for text in texts[:10]]

    def ask(path, body):
        while True:
            answer = http.post(path, json=body)
            if answer.status_code != 429:
                return answer.json()
            time.sleep(float(answer.headers["retry-after"]) / 10)

    jobs = [("/v1/embeddings", {"input": text}) for text in texts]
    jobs += [
        ("/v1/completions", {"prompt": text, "max_tokens": 6, "temperature": 0})
        for text in texts[:10]
    ]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, *zip(*jobs, strict=True)))
    got = np.array([answer["data"][0]["embedding"] for answer in answers[: len(texts)]])
    np.testing.assert_allclose(got, vectors, atol=1e-5)
    assert [a["choices"][0]["text"] for a in answers[len(texts) :]] == completions
    metrics = httpx.get(f"{server}/metrics").text
    batches, rows = (
        float(metrics.split(f'magnet_batch_rows_{what}{{kind="embedding"}} ')[1].split()[0])
        for what in ("count", "sum")
    )
    assert rows > batches


def test_a_process_refuses_what_does_not_fit_and_ends_when_all_is_answered(model, tmp_path):
    """429 where the queue is full, a client that leaves frees its row, and SIGTERM drains."""
    model.save_pretrained(tmp_path / "tiny")
    options = ("--max-waiting", "2", "--max-batch", "1")
    with (
        serving(tmp_path / "tiny", *options) as (address, process),
        httpx.Client(timeout=60) as client,
    ):
        url, answers = f"{address}/v1/completions", []

        def ask():
            answers.append(client.post(url, json={"prompt": "A cat", "max_tokens": 100}))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        busy = {"prompt": "The old", "max_tokens": 200, "temperature": 0, "stream": True}
        with client.stream("POST", url, json=busy) as running:
            next(running.iter_lines())
            with contextlib.suppress(httpx.TimeoutException):
                client.post(url, json={"prompt": "A dog"}, timeout=0.05)
            while client.get(f"{address}/health").json()["rows_waiting"]:
                time.sleep(0.01)
            for thread in threads:
                thread.start()
            while len(answers) < 4:  # two wait, the others are refused
                time.sleep(0.01)
            vector = client.post(f"{address}/v1/embeddings", json={"input": "A cat"})
            assert vector.status_code == 200  # which does not wait for a text
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            assert (answer.status_code == 429) == ("retry-after" in answer.headers)
        assert client.get(f"{address}/health").json()["rows_waiting"] == 0

        with client.stream("POST", url, json=busy) as running:
            lines = running.iter_lines()
            next(lines)
            process.terminate()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason": "length"' in rest[-2]
        process.join(60)
        assert process.exitcode in (0, -signal.SIGTERM)  # uvicorn ends by the signal itself


def test_langchain_embeds_by_it(server, model):
    langchain = pytest.importorskip("langchain_openai")
    embeddings = langchain.OpenAIEmbeddings(
        model="tiny", base_url=f"{server}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    expected = model.encode(SENTENCES, normalize_embeddings=True)
    np.testing.assert_allclose(embeddings.embed_documents(SENTENCES), expected, atol=1e-5)


def test_base64_is_little_endian_float32(http, model):
    answer = http.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, model.encode("a", normalize_embeddings=True), atol=1e-5)


def test_the_page_about_serving_is_true(model):
    """Its Python and its requests by curl."""
    page = documents.ROOT / "docs" / "how-to" / "serve.md"
    with serving_here(model, "magnet-smollm2-135m") as address:
        left = documents.run_blocks(page, server=address)
        for command in documents.commands(page):
            if command.startswith("curl"):
                words = shlex.split(command.replace("localhost:8000", address))
                printed = subprocess.run(
                    [*words, "--silent", "--fail"], capture_output=True, text=True, check=True
                ).stdout
                assert printed.startswith(("{", "data: "))
    assert len(left["vectors"]) == 2
    assert isinstance(left["middle"].choices[0].text, str)
