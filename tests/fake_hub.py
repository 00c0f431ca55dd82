"""A hub on this machine: the requests that huggingface_hub makes to create, upload, list and download, answered from memory."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories by name: {"files": {path: bytes}, "private": bool, "gated": bool}; and the (method, path) of every request."""

    def __init__(self):
        self.repositories = {}
        self.requests = []
        self.tokens = set()
        self.broken = False
        self.endpoint = ""

    def add(self, repo, files, **options):
        self.repositories[repo] = {"files": dict(files), "private": False, "gated": False} | options

    def downloads(self):
        return sorted(
            {path.split("/resolve/", 1)[1].split("/", 1)[1] for method, path in self.requests if method == "GET" and "/resolve/" in path}
        )


def sha(repository):
    """The name of a repository's state."""
    state = hashlib.sha1()
    for name, data in sorted(repository["files"].items()):
        state.update(name.encode() + b"\0" + data)
    return state.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set on a subclass."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format, *args):
        """Nothing is printed."""

    def answer(self, value=None, *, status=200, data=None, headers=None):
        data = json.dumps(value).encode() if data is None else data
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message):
        self.answer({"error": message}, status=status, headers={"X-Error-Code": code, "X-Error-Message": message})

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        if self.hub.broken:
            return self.answer({"error": "broken"}, status=418)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        kind, repo, rest = self.parts(path)
        repository = self.hub.repositories.get(repo)
        if repository is None:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if repository["gated"] and kind == "resolve":
            return self.refuse(403, "GatedRepo", "Access to this repository is restricted")
        return getattr(self, f"do_{kind}")(repository, repo, rest, body)

    do_GET = do_HEAD = do_POST = serve

    def parts(self, path):
        """(what is asked, repository, the rest of the path)."""
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            repo, rest = "/".join(words[2:4]), words[4:]
            return (rest[0] if rest else "revision"), repo, rest[1:]
        return "resolve", "/".join(words[:2]), words[3:]

    def create(self, asked):
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.hub.repositories:
            return self.answer({"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo}"}, status=409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(repo, {".gitattributes": b""}, private=private)
        return self.answer({"url": f"{self.hub.endpoint}/{repo}", "name": repo})

    def do_revision(self, repository, repo, rest, body):
        if rest and rest[0] not in ("main", sha(repository)):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[0]}")
        siblings = [{"rfilename": name} for name in sorted(repository["files"])]
        return self.answer(
            {"id": repo, "modelId": repo, "sha": sha(repository), "siblings": siblings, "private": repository["private"], "tags": []}
        )

    def do_preupload(self, repository, repo, rest, body):
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for file in json.loads(body)["files"]]
        return self.answer({"files": files})

    def do_commit(self, repository, repo, rest, body):
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                repository["files"][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        oid = sha(repository)
        return self.answer({"success": True, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def do_resolve(self, repository, repo, rest, body):
        name = "/".join(rest[1:])
        if name not in repository["files"]:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = repository["files"][name]
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": sha(repository),
            "Content-Type": "application/octet-stream",
        }
        return self.answer(data=data, headers=headers)


@contextlib.contextmanager
def fake_hub():
    """A running FakeHub."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
