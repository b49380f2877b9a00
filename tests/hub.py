"""A server of the Hub's protocol for huggingface_hub's client: repositories of data sets and models as folders.

    with hub(folder) as server:
        HfApi(endpoint=server.url, token="hf_x").create_repo("anna/harbours", repo_type="dataset")
        server.commits                        # (repository, message) of every commit

Files of more than LARGE bytes, and those that the Hub's .gitattributes name, are uploaded by LFS: preupload, batch,
upload, verify, commit. A commit's id is a hash over the files, and only the newest commit can be read.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 4096

LFS = (".parquet", ".npy", ".tar", ".safetensors", ".faiss")

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """A running server. `refuse_after`: after this many LFS uploads, every upload fails permanently."""

    folder: Path
    url: str = ""
    commits: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)  # sha256 of every upload
    downloads: list[str] = field(default_factory=list)  # paths of every GET of a file's content
    private: dict[str, bool] = field(default_factory=dict)
    refuse_after: int = -1
    refuse_downloads_after: int = -1
    swapped: dict[str, bytes] = field(
        default_factory=dict
    )  # by path in a repository: what is served in place of a file
    requests: int = 0
    # Called before and after every request with its number (from 1) and "begin" or "end": a test ends its client here.
    interrupt: Callable[[int, str], None] = lambda number, when: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def repo(self, kind: str, name: str) -> Path:
        """The folder of a repository: kind is datasets or models."""
        return self.folder / kind / name


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """Serve on the loopback interface."""
    (folder / "lfs").mkdir(parents=True, exist_ok=True)
    state = Hub(folder)

    class Handler(_Handler):
        hub = state

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _files(repo: Path) -> list[Path]:
    return sorted(path for path in repo.rglob("*") if path.is_file())


def is_large(path: Path) -> bool:
    return path.suffix in LFS or path.stat().st_size > LARGE


def identity(path: Path) -> str:
    """The sha256 of a file in LFS, the git blob's sha1 of any other."""
    data = path.read_bytes()
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def commit_of(repo: Path) -> str:
    seen = [(path.relative_to(repo).as_posix(), identity(path)) for path in _files(repo)]
    return hashlib.sha1(repr(seen).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._counted(self._read)

    def do_HEAD(self) -> None:
        self._counted(self._read)

    def do_POST(self) -> None:
        self._counted(lambda: self._write(self._body()))

    def do_PUT(self) -> None:
        self._counted(self._upload)

    def _counted(self, answer: Callable[[], None]) -> None:
        with self.hub.lock:
            self.hub.requests += 1
            number = self.hub.requests
        self.hub.interrupt(number, "begin")
        with contextlib.suppress(ConnectionError):  # the client was killed
            answer()
        self.hub.interrupt(number, "end")

    def _upload(self) -> None:
        """Receive an LFS file. On the real Hub the address is signed, so no token is needed."""
        data, oid = self._body(), self.path.rsplit("/", 1)[-1]
        with self.hub.lock:
            if 0 <= self.hub.refuse_after <= len(self.hub.uploads):
                return self._send(403, b"no more")
            self.hub.uploads.append(oid)
        if hashlib.sha256(data).hexdigest() != oid:
            return self._send(400, b"other bytes than announced")
        (self.hub.folder / "lfs" / oid).write_bytes(data)
        return self._send(200)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _allowed(self, repo: Path | None = None) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return known or (repo is not None and not self.hub.private.get(str(repo), False))

    # ---- writing

    def _write(self, data: bytes) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if not self._allowed():
            return self._json({"error": "Invalid username or password."}, 401)
        if parts == ["api", "validate-yaml"]:
            return self._validate(json.loads(data))
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(data))
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return self._batch(json.loads(data))
        if parts[-1] == "verify":
            return self._send(200)
        kind, owner, name, verb = parts[1:5]
        repo = self.hub.repo(kind, f"{owner}/{name}")
        if not repo.is_dir():
            return self._missing()
        if verb == "preupload":
            return self._preupload(repo, json.loads(data))
        if verb == "commit":
            return self._commit(repo, f"{kind}/{owner}/{name}", data)
        return self._send(404)

    def _validate(self, asked: dict[str, str]) -> None:
        import yaml

        head = yaml.safe_load(asked["content"].split("---\n")[1])
        good = isinstance(head, dict) and "license" in head and (asked["repoType"] != "model" or "tags" in head)
        self._json(
            {"errors": [] if good else [{"message": "license is missing"}], "warnings": []}, 200 if good else 400
        )

    def _create(self, asked: dict[str, str]) -> None:
        name = f"{asked.get('organization') or 'anna'}/{asked['name']}"
        repo = self.hub.repo(f"{asked.get('type', 'model')}s", name)
        if repo.is_dir():
            return self._json({"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}, 409)
        repo.mkdir(parents=True)
        self.hub.private[str(repo)] = asked.get("visibility") == "private"
        (repo / ".gitattributes").write_text("*.parquet filter=lfs\n")
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        return self._json({"url": f"{self.hub.url}/{prefix}{name}", "name": name})

    def _preupload(self, repo: Path, asked: dict[str, list[dict[str, object]]]) -> None:
        files = []
        for file in asked["files"]:
            path = Path(str(file["path"]))
            large = path.suffix in LFS or int(str(file["size"])) > LARGE
            here = repo / path
            oid = identity(here) if here.is_file() else None
            files.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": files})

    def _batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for one in asked["objects"]:
            about: dict[str, object] = {"oid": one["oid"], "size": one["size"]}
            if not (self.hub.folder / "lfs" / str(one["oid"])).exists():
                about["actions"] = {"upload": {"href": f"{self.hub.url}/lfs-upload/{one['oid']}"},
                                    "verify": {"href": f"{self.hub.url}/verify"}}  # fmt: skip
            objects.append(about)
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Path, name: str, data: bytes) -> None:
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines[1:]:
            value = line["value"]
            target = repo / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                shutil.copyfile(self.hub.folder / "lfs" / value["oid"], target)
            else:
                target.unlink()
        self.hub.commits.append((name, lines[0]["value"]["summary"]))
        sha = commit_of(repo)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    # ---- reading

    def _read(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            kind, owner, name, *rest = parts[1:]
        else:
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
            owner, name, *rest = parts
        repo = self.hub.repo(kind, f"{owner}/{name}")
        if not repo.is_dir() or not self._allowed(repo):
            return self._missing()
        sha = commit_of(repo)
        if len(rest) > 1 and rest[1] not in ("main", sha):
            return self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        if rest[:1] == ["tree"]:
            return self._json([_entry(repo, path) for path in _files(repo)])
        if rest[:1] == ["resolve"]:
            return self._resolve(repo, sha, "/".join(rest[2:]))
        siblings = [{"rfilename": path.relative_to(repo).as_posix()} for path in _files(repo)]
        return self._json(
            {"id": f"{owner}/{name}", "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        )

    def _resolve(self, repo: Path, sha: str, inside: str) -> None:
        path = repo / inside
        if not path.is_file():
            return self._send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        data = self.hub.swapped.get(inside, path.read_bytes())
        headers = {"X-Repo-Commit": sha, "ETag": f'"{identity(path)}"', "Accept-Ranges": "bytes"}
        if is_large(path):
            headers |= {"X-Linked-Etag": f'"{identity(path)}"', "X-Linked-Size": str(path.stat().st_size)}
        status, span = 200, self.headers.get("Range", "")
        if self.command == "GET":
            with self.hub.lock:
                if 0 <= self.hub.refuse_downloads_after <= len(self.hub.downloads):
                    return self._send(403, b"no more")
                self.hub.downloads.append(inside)
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1 if last else len(data), len(data))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
            status, data = 206, data[int(first) : stop]
        return self._send(status, data, headers)

    def _missing(self) -> None:
        self._send(404, headers={"X-Error-Code": "RepoNotFound"})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(repo: Path, path: Path) -> dict[str, object]:
    size = path.stat().st_size
    entry: dict[str, object] = {"type": "file", "path": path.relative_to(repo).as_posix(), "size": size}
    if is_large(path):
        return {**entry, "oid": "0" * 40, "lfs": {"oid": identity(path), "size": size, "pointerSize": 134}}
    return {**entry, "oid": identity(path)}
