"""
A small Hugging Face hub on this machine: the routes that huggingface_hub uses to read a model, with faults on demand.

Large files are redirected to a second server, as the hub does to its storage.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", "tokenizer.json")

_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_MODEL = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")


@dataclass(frozen=True, slots=True)
class Request:
    """One request that reached the hub."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(slots=True)
class Hub:
    """
    The content of the hub, and what is to go wrong. May be changed while it runs.

    `announced_bytes` and `served` lie about a file: its size in the listing, and the content that is sent.
    `listing`, if set, is the answer to whoever asks what a repository holds. `stalls` sends so many bytes of a file,
    then sets `stalled`, and sends the others once `released` is set.
    """

    repositories: Mapping[str, Path]
    token: str | None = None
    gated: bool = False
    announced_bytes: dict[str, int] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    listing: bytes | None = None
    stalls: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""

    def content(self, repository: str, name: str) -> bytes:
        return self.served.get(name, (self.repositories[repository] / name).read_bytes())

    def downloads(self, name: str) -> list[Request]:
        """The requests that asked for the content of a file."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(name) and "/storage/" in r.path]


@contextmanager
def serve_hub(repositories: Mapping[str, Path]) -> Iterator[Hub]:
    """Runs a hub with these repositories, each a directory, on two free ports of the loopback address."""
    hub = Hub(repositories)
    servers = [_Server(("127.0.0.1", 0), partial(_HubRequests, hub)) for _ in range(2)]
    hub.endpoint, hub.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False


class _HubRequests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *connection: object) -> None:
        self._hub = hub
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keeps the test's output free of request lines."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        self._hub.requests.append(Request(self.command, path, self.headers.get("Range"), authorization))
        routes: tuple[tuple[str, Callable[..., None]], ...] = (
            (r"/storage/(?P<repository>[^/]+/[^/]+)/(?P<name>.+)", self._send_stored),
            (_RESOLVE.pattern, self._resolve),
            (_MODEL.pattern, self._describe),
        )
        for pattern, route in routes:
            if match := re.fullmatch(pattern, path):
                values = match.groupdict()
                if values["repository"] not in self._hub.repositories:
                    return self._refuse(401, "RepoNotFound")
                if values.get("revision") not in (None, *REVISIONS):
                    return self._refuse(404, "RevisionNotFound")
                return route(**{key: value for key, value in values.items() if key in ("repository", "name")})
        return self._refuse(404, "EntryNotFound")

    def _describe(self, repository: str) -> None:
        if not self._allowed():
            return
        if self._hub.listing is not None:
            self._send(200, self._hub.listing)
            return
        directory = self._hub.repositories[repository]
        files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        siblings = [self._describe_file(directory / name, name) for name in files]
        self._send(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())

    def _describe_file(self, path: Path, name: str) -> dict[str, object]:
        content = path.read_bytes()
        size = self._hub.announced_bytes.get(name, len(content))
        entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": _git_hash(content)}
        if name.endswith(LARGE_SUFFIXES):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return entry

    def _resolve(self, repository: str, name: str) -> None:
        if not self._allowed():
            return
        path = self._hub.repositories[repository] / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_git_hash(content)}"'}
        if not name.endswith(LARGE_SUFFIXES):
            self._send(200, content, headers)
            return
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(self._hub.announced_bytes.get(name, len(content))),
            "Location": f"{self._hub.storage}/storage/{repository}/{name}",
        }
        self._send(302, b"", headers)

    def _send_stored(self, repository: str, name: str) -> None:
        content = self._hub.content(repository, name)
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, stall=self._hub.stalls.pop(name, None))

    def _allowed(self) -> bool:
        hub = self._hub
        if hub.token is None or self.headers.get("Authorization") == f"Bearer {hub.token}":
            return True
        if hub.gated:
            self._refuse(403, "GatedRepo")
        elif self.headers.get("Authorization") is None:
            self._refuse(401, "RepoNotFound")
        else:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        return False

    def _refuse(self, status: int, code: str | None, message: str = "no") -> None:
        self._send(status, b"{}", {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})

    def _send(
        self, status: int, content: bytes, headers: Mapping[str, str] | None = None, *, stall: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(content[:stall])
            if stall is not None:
                self._hub.stalled.set()
                self._hub.released.wait()
                self.wfile.write(content[stall:])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
