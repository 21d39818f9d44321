"""A loopback server for the tests, which answers the requests of the Hugging Face client libraries.

It serves folders ``<root>/models/<name>`` and ``<root>/datasets/<name>``, at the revision ``main`` and at any that is 40
hexadecimal digits. A repository that is missing gets 401, as on the Hub, and so does a private one without a token.

It accepts uploads with the token ``Hub.token``: create a repository, preupload, LFS batch and content, commit. The Xet protocol is
not implemented, so clients need ``HF_HUB_DISABLE_XET=1``. It can be told to fail: see :meth:`Hub.fail`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def reply(self, status: int, body: bytes | dict | list, **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        cut = self.how == "cut" and self.command == "GET"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def fail(self, status: int, code: str) -> None:
        self.reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.how = self.server.how_to_answer(f"{self.command} {self.path}")
        if self.how == "gated":
            return self.fail(403, "GatedRepo")
        if isinstance(self.how, int):
            return self.reply(self.how, {"error": "on purpose"})
        if isinstance(self.how, float):
            time.sleep(self.how)
        if self.how == "gone":
            return self.hang_up()
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        authorised = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if parts[:2] == ["api", "validate-yaml"]:
            return self.reply(200, {"errors": [], "warnings": []})
        if (
            self.command == "PUT"
            or parts[:3] == ["api", "repos", "create"]
            or {"preupload", "commit", "lfs"} & set(parts)
        ):
            return self.take_upload(parts, content, authorised)
        body = content.decode()
        api = parts[0] == "api"
        if api:
            parts = parts[1:]
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        folders = [(self.server.root.joinpath(kind, *parts[:n]), parts[n:]) for n in (2, 1) if len(parts) >= n]
        folder, rest = next(((f, r) for f, r in folders if any(p.is_file() for p in f.glob("*"))), (None, []))
        if folder is None or (self.server.is_private(folder) and not authorised):
            return self.fail(401, "RepoNotFound")
        verb, revision = (rest + ["info"])[0], (rest + ["", "main"])[1] or "main"
        path = "/".join(rest[2:])
        if revision != "main" and not re.fullmatch("[0-9a-f]{40}", revision):
            return self.fail(404, "RevisionNotFound")
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        commit = hash_of(json.dumps({n: hash_of(p.read_bytes()) for n, p in files.items()}).encode())
        if revision != "main":
            commit = revision

        def entry(name: str) -> dict:
            if name not in files:
                return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
            content = files[name].read_bytes()
            return {"type": "file", "path": name, "oid": hash_of(content), "size": len(content)}

        names = set(files) | {str(p) for n in files for p in Path(n).parents if str(p) != "."}
        if not api and verb == "resolve":
            if path not in files:
                return self.fail(404, "EntryNotFound")
            content = files[path].read_bytes()
            return self.reply(200, content, ETag=f'"{hash_of(content)}"', X_Repo_Commit=commit)
        if api and verb in ("info", "revision"):
            name = folder.relative_to(self.server.root / kind).as_posix()
            siblings = [{"rfilename": n} for n in files]
            private = self.server.is_private(folder)
            info = {"_id": "0", "id": name, "sha": commit, "siblings": siblings, "tags": [], "private": private}
            return self.reply(200, info)
        if api and verb == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return self.reply(200, [entry(name) for name in wanted if name in names])
        if api and verb == "tree" and (not path or path in names):
            recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            inside = [n for n in sorted(names) if not path or n.startswith(f"{path}/")]
            return self.reply(200, [entry(n) for n in inside if recursive or str(Path(n).parent) == (path or ".")])
        self.fail(404, "EntryNotFound")

    def take_upload(self, parts: list[str], content: bytes, authorised: bool) -> None:
        hub = self.server
        if self.command == "PUT" and parts[0] == "lfs":  # as on the Hub, knowing the address is enough
            if hashlib.sha256(content).hexdigest() != parts[1]:
                return self.reply(400, {"error": "the content is not that of the oid"})
            hub.lfs[parts[1]] = content
            return self.reply(200, {})
        if not authorised:
            return self.reply(401, {"error": "Invalid username or password."})
        if parts[1:] == ["repos", "create"]:
            wanted = json.loads(content)
            name = f"{wanted['organization'] or hub.user}/{wanted['name']}"
            folder = hub.root / "models" / name
            if folder.exists():
                return self.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
            folder.mkdir(parents=True)
            (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            hub.visibility[name] = wanted.get("visibility", "public")
            return self.reply(200, {"url": f"{hub.url}/{name}", "name": name})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        folder = hub.root / "models" / name
        if not folder.exists():
            return self.fail(401, "RepoNotFound")
        if "preupload" in parts:
            paths = [file["path"] for file in json.loads(content)["files"]]
            modes = ["lfs" if path.endswith(".safetensors") else "regular" for path in paths]
            files = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(paths, modes, strict=True)]
            return self.reply(200, {"files": files})
        if "lfs" in parts:
            objects = json.loads(content)["objects"]
            for entry in objects:
                if entry["oid"] not in hub.lfs:
                    entry["actions"] = {"upload": {"href": f"{hub.url}/lfs/{entry['oid']}"}}
            return self.reply(200, {"transfer": "basic", "objects": objects})
        for line in content.splitlines():
            change = json.loads(line)
            if change["key"] in ("file", "lfsFile"):
                value = change["value"]
                path = folder / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                regular = change["key"] == "file"
                path.write_bytes(base64.b64decode(value["content"]) if regular else hub.lfs[value["oid"]])
        commit = hash_of(content)
        self.reply(200, {"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}"})

    do_GET = do_HEAD = do_POST = do_PUT = answer


class Hub(ThreadingHTTPServer):
    """Serves ``root`` until :meth:`shutdown`; ``requests`` lists what was asked for, ``visibility`` what was created."""

    daemon_threads = True
    user, token = "me", "hf_" + "aToken0OfTheTests" * 2

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.requests = root, []
        self.lfs: dict[str, bytes] = {}
        self.visibility: dict[str, str] = {}
        self._failures: list[list] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """Ignore clients that hang up, for example after a timeout."""

    def is_private(self, folder: Path) -> bool:
        return self.visibility.get("/".join(folder.parts[-2:])) == "private"

    @contextmanager
    def fail(self, pattern: str, how: int | float | str, times: float = math.inf) -> Iterator[None]:
        """Within this context, fail the first ``times`` requests that match ``pattern``; a request reads ``GET /api/models/x``.

        ``how``: an HTTP status, seconds to wait before the answer (a float), ``"cut"`` (half of the file, then hang up),
        ``"gone"`` (hang up without an answer) or ``"gated"``.
        """
        failure = [re.compile(pattern), how, times]
        self._failures.append(failure)
        try:
            yield
        finally:
            self._failures.remove(failure)

    def how_to_answer(self, request: str) -> int | float | str:
        for failure in self._failures:
            if failure[2] > 0 and failure[0].search(request):
                failure[2] -= 1
                return failure[1]
        return ""


def hash_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
