"""A local server that speaks the parts of the Hub's HTTP API that huggingface_hub uses.

It holds repositories in memory and can be told to misbehave: see ``Fault``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_TestTokenThatMustNeverBeSeen0123"
LFS_SUFFIXES = (".gguf", ".parquet", ".bin")


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Fault:
    """Something that goes wrong with the next requests that match.

    Attributes:
        method: "PUT", or "" for any.
        path: regular expression, searched in the path.
        status: answer this, with ``headers``; 0 for none.
        drop_after: close the connection after so many bytes of the body, read or sent.
        corrupt: store other bytes than were sent.
        times: how often.
        seen: how often it has happened.
    """

    method: str
    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    corrupt: bool = False
    times: int = 1
    seen: int = 0


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)

    def head(self, branch: str) -> str:
        content = json.dumps(
            [branch, {k: git_blob(v) for k, v in sorted(self.branches[branch].items())}]
        )
        return hashlib.sha1(content.encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        for branch, files in self.branches.items():
            if revision in (branch, self.head(branch)):
                return files
        return None


class HubServer:
    """Start it with ``with HubServer() as server``; ``server.url`` is the endpoint."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.storage: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.uploaded: list[str] = []
        self.chunk_size: int | None = None
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def add(
        self,
        name: str,
        files: dict[str, bytes],
        *,
        kind: str = "model",
        private: bool = False,
        branch: str = "main",
    ) -> Repository:
        repository = self.repositories.setdefault((kind, name), Repository(private))
        repository.branches.setdefault(branch, {}).update(files)
        return repository

    def count(self, method: str, pattern: str) -> int:
        return sum(m == method and re.search(pattern, p) is not None for m, p in self.requests)

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if (
                    fault.seen < fault.times
                    and fault.method in ("", method)
                    and re.search(fault.path, path)
                ):
                    fault.seen += 1
                    return fault
        return None


class _Dropped(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A body after its header would wait 40 ms for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((method, path))
        self.fault = self.hub.fault(method, path)
        try:
            self.body = self._read_body()
            if self.fault and self.fault.status:
                self._send(self.fault.status, {"error": "made to fail"}, self.fault.headers)
                return
            for pattern, name in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and name.startswith(f"{method.lower().replace('head', 'get')}_"):
                    getattr(self, name)(**match.groupdict())
                    return
            self._send(404, {"error": f"no such endpoint: {method} {path}"})
        except _Dropped:
            self.close_connection = True
            self.connection.close()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._read_chunked()
        length = int(self.headers.get("Content-Length") or 0)
        limit = self.fault.drop_after if self.fault else None
        if self.command in ("PUT", "POST") and limit is not None and limit < length:
            self.rfile.read(limit)
            raise _Dropped
        return self.rfile.read(length)

    def _read_chunked(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
            if self.fault and self.fault.drop_after is not None:
                raise _Dropped
        self.rfile.readline()
        return data

    def _send(
        self, status: int, value: object = None, headers: dict[str, str] | None = None
    ) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.drop_after is not None:
            self.wfile.write(data[: self.fault.drop_after])
            self.wfile.flush()
            raise _Dropped
        self.wfile.write(data)

    # Who may do what

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _allowed(self) -> bool:
        if not self._known():
            self._send(401, {"error": "Invalid username or password."})
        return self._known()

    def _repository(self, kind: str, name: str) -> Repository | None:
        repository = self.hub.repositories.get((kind.removesuffix("s"), name))
        if repository is None or (repository.private and not self._known()):
            status = 404 if self._known() else 401
            self._send(status, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _files(self, kind: str, name: str, revision: str) -> dict[str, bytes] | None:
        repository = self._repository(kind, name)
        if repository is None:
            return None
        files = repository.at(revision)
        if files is None:
            self._send(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        return files

    # Reading

    def get_info(self, kind: str, name: str, revision: str | None = None) -> None:
        files = self._files(kind, name, revision or "main")
        if files is not None:
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._send(
                200,
                {"id": name, "modelId": name, "sha": "0" * 40, "siblings": siblings, "tags": []},
            )

    def get_tree(self, kind: str, name: str, revision: str, path: str | None = None) -> None:
        files = self._files(kind, name, revision)
        if files is not None:
            self._send(200, [_entry(path, data) for path, data in sorted(files.items())])

    def post_paths_info(self, kind: str, name: str, revision: str) -> None:
        files = self._files(kind, name, revision)
        if files is not None:
            text = self.body.decode()
            paths = json.loads(text)["paths"] if text[:1] == "{" else parse_qs(text)["paths"]
            self._send(200, [_entry(path, files[path]) for path in paths if path in files])

    def get_resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> None:
        files = self._files(kind or "models", name, revision)
        if files is None:
            return
        if path not in files:
            self._send(404, {"error": "no file"}, {"X-Error-Code": "EntryNotFound"})
            return
        data = files[path]
        etag = hashlib.sha256(data).hexdigest() if _is_lfs(path) else git_blob(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206, data[start:], headers)
        else:
            self._send(200, data, headers | {"Content-Length": str(len(data))})

    # Writing

    def post_create(self) -> None:
        if not self._allowed():
            return
        asked = json.loads(self.body)
        owner = asked.get("organization") or "tester"
        key = (asked.get("type") or "model", f"{owner}/{asked['name']}")
        url = f"{self.hub.url}/{key[1]}"
        if key in self.hub.repositories:
            self._send(409, {"error": "You already created this repo", "url": url})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[key] = Repository(bool(private))
        self._send(200, {"url": url, "name": key[1], "id": "0"})

    def post_branch(self, kind: str, name: str, revision: str) -> None:
        if self._allowed() and (repository := self._repository(kind, name)):
            if revision in repository.branches:
                self._send(409, {"error": "Reference already exists"})
                return
            repository.branches[revision] = dict(repository.branches["main"])
            self._send(200, {})

    def post_yaml(self) -> None:
        good = json.loads(self.body)["content"].startswith("---\n")
        self._send(200, {"errors": [], "warnings": [] if good else [{"message": "no metadata"}]})

    def post_preupload(self, kind: str, name: str, revision: str) -> None:
        if not self._allowed():
            return
        files = self._files(kind, name, revision)
        if files is None:
            return
        answer = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            lfs = _is_lfs(path)
            held = files.get(path)
            oid = None if held is None else _oid(path, held)
            mode = "lfs" if lfs else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": answer})

    def post_batch(self, name: str, kind: str | None = None) -> None:
        if not self._allowed():
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer: dict[str, object] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.storage:
                answer["actions"] = self._upload_actions(asked["oid"], asked["size"])
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _upload_actions(self, oid: str, size: int) -> dict[str, object]:
        signed = "?X-Amz-Signature=secret"
        verify = {"href": f"{self.hub.url}/lfs/verify"}
        chunk = self.hub.chunk_size
        if chunk is None or size <= chunk:
            return {"upload": {"href": f"{self.hub.url}/lfs/{oid}{signed}"}, "verify": verify}
        header = {"chunk_size": str(chunk)}
        for number in range(1, -(-size // chunk) + 1):
            header[str(number)] = f"{self.hub.url}/lfs/{oid}/{number}{signed}"
        href = f"{self.hub.url}/lfs/complete/{oid}"
        return {"upload": {"href": href, "header": header}, "verify": verify}

    def put_object(self, oid: str) -> None:
        self._store(oid, self.body)
        self._send(200, {})

    def put_part(self, oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = self.body
        self._send(200, {}, {"ETag": f'"part{number}"'})

    def post_complete(self, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        self._store(oid, b"".join(data for _, data in sorted(parts.items())))
        self._send(200, {})

    def _store(self, oid: str, data: bytes) -> None:
        if self.fault and self.fault.corrupt:
            data = bytes(byte ^ 1 for byte in data)
        self.hub.storage[oid] = data
        self.hub.uploaded.append(oid)

    def post_verify(self) -> None:
        self._send(200, {})

    def post_commit(self, kind: str, name: str, revision: str) -> None:
        if not self._allowed():
            return
        files = self._files(kind, name, revision)
        if files is None:
            return
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.storage[value["oid"]]
        self.hub.repositories[(kind.removesuffix("s"), name)].commits.append(message)
        url = f"{self.hub.url}/{name}/commit/0"
        self._send(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if _is_lfs(path) else git_blob(data)


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data)}
    entry["oid"] = git_blob(data)
    if _is_lfs(path):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return entry


_KIND = r"(?P<kind>models|datasets)"
_NAME = r"(?P<name>[^/]+/[^/]+?)"
_REV = r"(?P<revision>refs/convert/parquet|[^/]+)"
_ROUTES: list[tuple[str, str]] = [
    (r"/api/repos/create", "post_create"),
    (r"/api/validate-yaml", "post_yaml"),
    (rf"/api/{_KIND}/{_NAME}/tree/{_REV}(?P<path>/.*)?", "get_tree"),
    (rf"/api/{_KIND}/{_NAME}/paths-info/{_REV}", "post_paths_info"),
    (rf"/api/{_KIND}/{_NAME}/preupload/{_REV}", "post_preupload"),
    (rf"/api/{_KIND}/{_NAME}/commit/{_REV}", "post_commit"),
    (rf"/api/{_KIND}/{_NAME}/branch/{_REV}", "post_branch"),
    (rf"/api/{_KIND}/{_NAME}/revision/{_REV}", "get_info"),
    (rf"/api/{_KIND}/{_NAME}", "get_info"),
    (r"/lfs/verify", "post_verify"),
    (r"/lfs/complete/(?P<oid>[0-9a-f]{64})", "post_complete"),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", "put_object"),
    (r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", "put_part"),
    (rf"/(?:(?P<kind>datasets)/)?{_NAME}\.git/info/lfs/objects/batch", "post_batch"),
    (rf"/(?:(?P<kind>datasets)/)?{_NAME}/resolve/{_REV}/(?P<path>.+)", "get_resolve"),
]
