"""A small Hugging Face Hub on loopback, so that tests run the real client without the internet.

Use ``with HubServer() as hub`` and give a subprocess ``hub.environment(cache_dir)`` on top of
``os.environ``. An in-process client takes ``endpoint=hub.endpoint`` and ``token=TOKEN``, but has
read the rest of the environment at import: see the fixture ``hub`` of test_hub_server.py. Only
model repositories exist. Their one branch is "main"; every commit can also be read by its sha.

Endpoints, and the client call that needs each of them:
    GET  /api/whoami-v2                       whoami
    POST /api/repos/create                    create_repo, push_to_hub
    POST /api/validate-yaml                   any commit that has a README.md
    POST /api/models/{repo}/preupload/{rev}   any commit: says which files go through LFS
    POST /{repo}.git/info/lfs/objects/batch   any commit with LFS files: says which to send
    PUT  /lfs/{repo}/{sha256}                 the upload of one LFS file (on the Hub: a signed URL)
    POST /api/models/{repo}/commit/{rev}      create_commit, upload_folder, push_to_hub
    GET  /api/models/{repo}[/revision/{rev}]  model_info, snapshot_download, from_pretrained
    GET  /api/models/{repo}/tree/{rev}[/...]  list_repo_files, list_repo_tree, snapshot_download
    HEAD, GET /{repo}/resolve/{rev}/{file}    hf_hub_download, from_pretrained
Anything else (datasets, Xet, branches, tags, pull requests) answers 501, to fail in plain sight.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

TOKEN = "hf_test"
USER = "hf-test-user"
# The Hub takes the names from .gitattributes; it also sends what is large or binary through LFS.
LFS_SUFFIXES = (".bin", ".model", ".npz", ".onnx", ".pt", ".pth", ".safetensors", ".zip")
LFS_SIZE = 10 * 1024 * 1024

_REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", rf"/lfs/{_REPO}/(?P<oid>[0-9a-f]{{64}})", "lfs_upload"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<rev>[^/]+)", "commit"),
    ("GET", rf"/api/models/{_REPO}(?:/revision/(?P<rev>[^/]+))?", "model_info"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("GET", rf"/{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
)


class HubError(Exception):
    """An error answer, with the headers from which the client chooses its exception class."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        self.status = status
        text = message.encode("ascii", "backslashreplace").decode()
        headers = {"X-Error-Message": text, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in headers.items() if value}


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class HubFile:
    """One version of one file."""

    data: bytes
    is_lfs: bool

    @cached_property
    def oid(self) -> str:
        """The ETag, and what the client compares with its own file to skip unchanged ones."""
        return hashlib.sha256(self.data).hexdigest() if self.is_lfs else _git_sha1(self.data)

    def entry(self, path: str) -> dict[str, Any]:
        """Returns the file as the tree endpoint lists it."""
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid}
        entry["size"] = len(self.data)
        if self.is_lfs:
            pointer = "version https://git-lfs.github.com/spec/v1\n"
            pointer += f"oid sha256:{self.oid}\nsize {len(self.data)}\n"
            entry["oid"] = _git_sha1(pointer.encode())
            # The tree endpoint has the checksum as "oid", model info has it as "sha256".
            entry["lfs"] = {"oid": self.oid, "sha256": self.oid, "size": len(self.data)}
            entry["lfs"]["pointerSize"] = len(pointer)
        return entry


@dataclass
class Repository:
    """A repository: every commit is kept as the whole tree that it left."""

    repo_id: str
    private: bool
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    lfs_objects: dict[str, bytes] = field(default_factory=dict)
    head: str = ""

    def commit(self, tree: dict[str, HubFile]) -> str:
        """Makes `tree` the head and returns its new sha, which differs even for an equal tree."""
        listing = sorted((path, file.oid) for path, file in tree.items())
        self.head = hashlib.sha1(repr((self.repo_id, self.head, listing)).encode()).hexdigest()
        self.commits[self.head] = tree
        return self.head

    def resolve(self, revision: str) -> tuple[str, dict[str, HubFile]]:
        """Returns the sha and the tree of "main" or of a full commit sha."""
        sha = self.head if revision == "main" else revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, self.commits[sha]


class HubServer:
    """The server, as a context manager that listens on a free loopback port while it is open.

    Args:
        page_size: Entries per page of the tree endpoint; the Hub has 1000.

    Attributes:
        endpoint: URL for HF_ENDPOINT or `endpoint=`.
        repositories: The repositories by id ("user/name").
        requests: "METHOD /path?query" of every request so far, for tests that look at the traffic.
    """

    def __init__(self, page_size: int = 1000) -> None:
        self.page_size = page_size
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        # Requests run in threads of their own, and a commit reads the head before it replaces it.
        self.lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def environment(self, cache_dir: str | Path) -> dict[str, str]:
        """Returns the variables that tie a subprocess to this server and to `cache_dir` alone."""
        home = Path(cache_dir)
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_TOKEN": TOKEN,
            # The client asks nobody whether Xet is there: with hf_xet installed it uploads so.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # The caller's own settings, which would keep the client from reaching loopback.
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Returns the content of every file of a repository, without going through HTTP."""
        tree = self.repositories[repo_id].resolve(revision)[1]
        return {path: file.data for path, file in tree.items()}


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    hub: HubServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: with Nagle's algorithm each answer would wait for an ACK.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.hub = self.server.hub
        self.hub.requests.append(f"{self.command} {self.path}")
        # The body is read even where it is not used: the next request follows it on this socket.
        try:
            self.body = self._read_body()
            status, headers, content = self._answer()
        except HubError as error:
            status, headers = error.status, error.headers
            content = json.dumps({"error": str(error)}).encode()
        except (KeyError, ValueError) as error:
            status, headers, content = 400, {}, json.dumps({"error": repr(error)}).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test output clean; `HubServer.requests` has the same."""

    def _read_body(self) -> bytes:
        """Returns the whole body, or refuses: half a commit can look like a smaller, whole one."""
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) < size or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise HubError(400, "the body broke off, or came without a Content-Length")
        return body

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        for method, pattern, route in _ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and method == self.command.replace("HEAD", "GET"):
                # Unquoted only now: the client quotes the slashes inside a revision or a path.
                groups = {key: unquote(value) for key, value in match.groupdict().items() if value}
                return self._call(route, groups)
        raise HubError(501, f"not part of the test Hub: {self.command} {self.path}")

    def _call(self, route: str, groups: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        # The PUT has no token: on the Hub it goes to a signed URL.
        if (self.command == "POST" or route == "whoami") and not self._has_token():
            raise HubError(401, "Invalid credentials in Authorization header")
        handler: Callable[..., Any] = getattr(self, f"_{route}")
        with self.hub.lock:
            answer = handler(**groups)
        if isinstance(answer, tuple):
            return answer
        return 200, {}, json.dumps(answer).encode()

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._has_token()):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def _whoami(self) -> dict[str, Any]:
        token = {"displayName": "test", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": auth}

    def _create_repo(self) -> Any:
        request = json.loads(self.body)
        if request.get("type") not in (None, "model"):
            raise HubError(501, f"not part of the test Hub: repositories of type {request['type']}")
        repo_id = f"{request.get('organization') or USER}/{request['name']}"
        # The client reads "url" from the 409 as well, when it was called with exist_ok=True.
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            answer["error"] = "You already created this model repo"
            return 409, {}, json.dumps(answer).encode()
        # Older clients send "private", newer ones "visibility".
        private = request.get("private") or request.get("visibility") == "private"
        repository = Repository(repo_id, private=bool(private))
        # As on the Hub, a new repository is not empty, and listings have this file as well.
        attributes = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES)
        repository.commit({".gitattributes": HubFile(attributes.encode(), is_lfs=False)})
        self.hub.repositories[repo_id] = repository
        return answer

    def _validate_yaml(self) -> Any:
        # Without a YAML parser in the standard library, only the limits of the block are checked.
        content = json.loads(self.body)["content"]
        answer: dict[str, Any] = {"errors": [], "warnings": []}
        if not re.match(r"---\r?\n", content):
            answer["warnings"].append({"message": "empty or missing yaml metadata in repo card"})
        elif not re.match(r"---\r?\n(.*\n)*?---\s*(\n|$)", content):
            answer["errors"].append({"message": "the yaml metadata block is not closed"})
            return 400, {}, json.dumps(answer).encode()
        return answer

    def _preupload(self, repo: str, rev: str) -> dict[str, Any]:
        tree = self._repository(repo).resolve(rev)[1]
        answers = []
        for file in json.loads(self.body)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            lfs = path.endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE or b"\0" in sample
            mode = "lfs" if lfs else "regular"
            old = tree[path].oid if path in tree else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": old})
        return {"files": answers}

    def _lfs_batch(self, repo: str) -> dict[str, Any]:
        repository = self._repository(repo)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in repository.lfs_objects:
                href = f"{self.hub.endpoint}/lfs/{repo}/{item['oid']}"
                item["actions"] = {"upload": {"href": href, "header": {}}}
        return {"transfer": "basic", "objects": objects}

    def _lfs_upload(self, repo: str, oid: str) -> dict[str, Any]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(422, f"the {len(self.body)} bytes received do not have sha256 {oid}")
        # Without the check of `_repository`, as the client sends no token here.
        self.hub.repositories[repo].lfs_objects[oid] = self.body
        return {}

    def _commit(self, repo: str, rev: str) -> dict[str, Any]:
        repository = self._repository(repo)
        if rev != "main" or "create_pr" in self.query:
            raise HubError(501, "not part of the test Hub: commits elsewhere than on main")
        # Changes go into a copy, so that a refused line leaves nothing behind.
        tree = dict(repository.resolve(rev)[1])
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            path = value.get("path", "")
            if key == "header":
                if value.get("parentCommit", repository.head) != repository.head:
                    raise HubError(412, "A commit has happened since. Please refresh and try again")
            elif key == "file":
                tree[path] = HubFile(base64.b64decode(value["content"]), is_lfs=False)
            elif key == "lfsFile":
                data = repository.lfs_objects.get(value["oid"])
                if data is None or value.get("size", len(data)) != len(data):
                    raise HubError(422, f"{path}: LFS object {value['oid']} was not uploaded")
                tree[path] = HubFile(data, is_lfs=True)
            elif key == "deletedFile":
                if tree.pop(path, None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise HubError(501, f"not part of the test Hub: commit operation {key}")
        sha = repository.commit(tree)
        url = f"{self.hub.endpoint}/{repo}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}

    def _model_info(self, repo: str, rev: str = "main") -> dict[str, Any]:
        repository = self._repository(repo)
        sha, tree = repository.resolve(rev)
        siblings = []
        for path in sorted(tree):
            entry = tree[path].entry(path)
            details = {"size": entry["size"], "blobId": entry["oid"], "lfs": entry.get("lfs")}
            siblings.append({"rfilename": path, **(details if "blobs" in self.query else {})})
        author = repo.partition("/")[0]
        info = {"id": repo, "author": author, "sha": sha, "siblings": siblings}
        state = {"private": repository.private, "gated": False, "disabled": False, "tags": []}
        return {**info, **state}

    def _tree(self, repo: str, rev: str, path: str = "") -> Any:
        sha, tree = self._repository(repo).resolve(rev)
        prefix = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for name in sorted(p for p in tree if p.startswith(prefix)):
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(f"{sha} {folder}".encode()).hexdigest()
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
            entries[name] = tree[name].entry(name)
        if prefix and not entries:
            raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound", sha)
        if self.query.get("recursive") != "true":
            entries = {name: e for name, e in entries.items() if "/" not in name[len(prefix) :]}
        start = int(self.query.get("cursor", 0))
        end = start + self.hub.page_size
        headers = {}
        if end < len(entries):
            query = urlencode({**self.query, "cursor": end})
            url = f"{self.hub.endpoint}{urlsplit(self.path).path}?{query}"
            headers["Link"] = f'<{url}>; rel="next"'
        return 200, headers, json.dumps(list(entries.values())[start:end]).encode()

    def _resolve(self, repo: str, rev: str, path: str) -> Any:
        sha, tree = self._repository(repo).resolve(rev)
        if path not in tree:
            # The client remembers under this sha that the file is not there.
            raise HubError(404, "Entry not found", "EntryNotFound", sha)
        file = tree[path]
        headers = {"Content-Type": "application/octet-stream", "X-Repo-Commit": sha}
        headers["ETag"] = f'"{file.oid}"'
        if file.is_lfs:
            headers |= {"X-Linked-Size": str(len(file.data)), "X-Linked-Etag": f'"{file.oid}"'}
        return 200, headers, file.data
