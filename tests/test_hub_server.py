"""Checks of the test Hub: what the real clients do with it, and what it must refuse."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, USER, HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "user/repo"
CARD = "---\nlicense: mit\ntags:\n- tiny\n---\n# A card\n"

DIGEST = """
import hashlib
def digest(model):
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().numpy().tobytes())
    print("digest", total.hexdigest())
"""
PUSH_LLAMA = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **sizes))
model.push_to_hub("user/llama")
digest(model)
"""
LOAD_LLAMA = """
from transformers import AutoModel, AutoModelForCausalLM
digest(AutoModelForCausalLM.from_pretrained("user/llama"))
custom = AutoModel.from_pretrained("user/custom", trust_remote_code=True)
print("custom", type(custom).__name__, custom.weight.tolist())
"""
CUSTOM_CONFIG = """{
    "model_type": "custom-test",
    "architectures": ["CustomModel"],
    "auto_map": {"AutoConfig": "custom.CustomConfig", "AutoModel": "custom.CustomModel"}
}"""
CUSTOM_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class CustomConfig(PretrainedConfig):
    model_type = "custom-test"

class CustomModel(PreTrainedModel):
    config_class = CustomConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.post_init()
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server with pages of two entries, and this process's client tied to it."""
    with HubServer(page_size=2) as server:
        # Even with endpoint= the client asks its default endpoint one thing (which coding agents
        # exist), and the file URLs come from a template made from that default at import.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
            constants.ENDPOINT, server.endpoint
        )
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    """A client of the server, on which the repository exists."""
    client = HfApi(endpoint=hub.endpoint, token=TOKEN)
    client.create_repo(REPO)
    return client


def put(hub: HubServer, oid: str, data: bytes) -> int:
    """Returns the status of an LFS upload of `data` under the checksum `oid`."""
    url = f"{hub.endpoint}/lfs/{REPO}/{oid}"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, data, method="PUT")).status
    except urllib.error.HTTPError as error:
        return error.code


def run(hub: HubServer, home: Path, script: str) -> str:
    """Returns the output of a clean process that knows only the server and `home`."""
    env = {**os.environ, **hub.environment(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DIGEST + script]
    result = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_folder_round_trip(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub folder").mkdir(parents=True)
    (source / "README.md").write_text(CARD)
    (source / "sub folder" / "é.txt").write_text("small\n")
    (source / "model.safetensors").write_bytes(os.urandom(5000))
    (source / "empty.txt").touch()
    sent = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*.*")}

    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    before = api.model_info(REPO).sha
    commit = api.upload_folder(repo_id=REPO, folder_path=source)
    info = api.model_info(REPO, files_metadata=True)
    folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    one = api.hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path / "cache-of-one")

    got = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
    assert got.pop(".gitattributes")
    assert got == sent
    assert Path(one).read_bytes() == sent["model.safetensors"]
    assert sorted(api.list_repo_files(REPO)) == [".gitattributes", *sorted(sent)]
    assert folder.name == commit.oid == info.sha != before
    assert api.list_repo_files(REPO, revision=before) == [".gitattributes"]
    lfs = {s.rfilename: s.lfs.sha256 for s in info.siblings if s.lfs}
    assert lfs == {"model.safetensors": hashlib.sha256(sent["model.safetensors"]).hexdigest()}
    assert any("cursor=" in request for request in hub.requests)
    assert api.whoami()["name"] == USER


def test_later_commits(hub: HubServer, api: HfApi) -> None:
    first = [CommitOperationAdd(name, b"1" * 2000) for name in ("a.txt", "b.bin")]
    one = api.create_commit(REPO, first, commit_message="one")
    hub.requests.clear()
    same = api.create_commit(
        REPO, [CommitOperationAdd("b.bin", b"1" * 2000)], commit_message="unchanged"
    )
    assert same.oid == one.oid
    assert not any(r.startswith("PUT") or "/commit/" in r for r in hub.requests)

    changes = [CommitOperationDelete("a.txt"), CommitOperationAdd("b.bin", b"2")]
    api.create_commit(REPO, changes, commit_message="two", parent_commit=one.oid)
    assert hub.files(REPO).keys() == {".gitattributes", "b.bin"}
    assert hub.files(REPO)["b.bin"] == b"2"
    assert hub.files(REPO, one.oid)["a.txt"] == b"1" * 2000
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"3", path_in_repo="c", repo_id=REPO, parent_commit=one.oid)


def test_what_is_missing(api: HfApi, tmp_path: Path) -> None:
    for call in (api.model_info, api.list_repo_files, api.snapshot_download):
        with pytest.raises(RepositoryNotFoundError):
            call("user/missing")
    with pytest.raises(RepositoryNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/missing")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "missing.json", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="missing")
    assert api.repo_exists(REPO)
    assert not api.file_exists(REPO, "missing.json")


def test_who_may_not(hub: HubServer, api: HfApi) -> None:
    api.create_repo("user/private", private=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.bin", repo_id="user/private")
    assert api.model_info("user/private").private
    assert hub.files("user/private")["x.bin"] == b"x"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/private", token=False)
    with pytest.raises(HfHubHTTPError, match="401"):
        api.create_repo("user/other", token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="501"):
        api.create_repo("user/other", repo_type="dataset")
    assert hub.repositories.keys() == {REPO, "user/private"}


def test_half_upload_is_never_committed(
    hub: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(5000)
    oid = hashlib.sha256(data).hexdigest()
    before = hub.files(REPO)
    assert put(hub, oid, data[:2500]) == 422

    operations = [CommitOperationAdd("a.txt", b"a"), CommitOperationAdd("b.bin", data)]
    with monkeypatch.context() as broken:
        # A client that takes the upload for done: the commit itself must refuse.
        broken.setattr("huggingface_hub._commit_api._upload_files", lambda **_kwargs: None)
        with pytest.raises(HfHubHTTPError, match="422"):
            api.create_commit(REPO, operations, commit_message="half")
    assert hub.files(REPO) == before
    assert put(hub, oid, data) == 200


def test_commit_that_breaks_off_is_refused(hub: HubServer, api: HfApi) -> None:
    before = hub.repositories[REPO].head
    # The lines that arrive are whole, so that only the declared length tells that some are missing.
    lines = b'{"key": "header", "value": {"summary": "one of two files"}}\n'
    lines += b'{"key": "file", "value": {"path": "a.txt", "content": "YQ=="}}\n'
    request = f"POST /api/models/{REPO}/commit/main HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n"
    request += f"Content-Length: {len(lines) + 100}\r\n\r\n"
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.encode() + lines)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert hub.repositories[REPO].head == before


def test_bad_card_is_refused(api: HfApi) -> None:
    with pytest.raises(ValueError, match="not closed"):
        api.upload_file(
            path_or_fileobj=b"---\nlicense: mit\n", path_in_repo="README.md", repo_id=REPO
        )


def test_transformers_push_and_load(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    weights = save({"weight": torch.tensor([1.0, 2.0, 3.0])}, metadata={"format": "pt"})
    api.create_repo("user/custom")
    contents = {
        "config.json": CUSTOM_CONFIG.encode(),
        "custom.py": CUSTOM_CODE.encode(),
        "model.safetensors": weights,
    }
    operations = [CommitOperationAdd(name, data) for name, data in contents.items()]
    api.create_commit("user/custom", operations, commit_message="custom code")

    pushed, loaded, custom = run(hub, tmp_path, PUSH_LLAMA + LOAD_LLAMA).splitlines()
    assert {"config.json", "model.safetensors", "README.md"} <= hub.files("user/llama").keys()
    assert pushed.startswith("digest ") and loaded == pushed
    assert custom == "custom CustomModel [1.0, 2.0, 3.0]"
