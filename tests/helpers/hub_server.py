# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
A Hub in this process, for tests: what the clients of `huggingface_hub` and transformers call over HTTP to create
model repositories, to commit to them (small files in the commit, large ones by Git LFS) and to download from them. Set
`HF_ENDPOINT` to its `endpoint` and `HF_HUB_DISABLE_XET=1` in the environment of a new process: both are read at
import.

Repositories, commits and files are plain attributes, for tests to look at.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Files = dict[str, bytes]


@dataclass
class Commit:
    """A state of a repository: all files by their paths, and those of them that are in LFS."""

    title: str
    files: Files = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    def oid(self, path: str) -> str:
        content = self.files[path]
        if path in self.lfs:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, commit: Commit, branch: str) -> str:
        """Returns the commit's hash."""
        oid = hashlib.sha1(f"{len(self.commits)} {commit.title} {id(self)}".encode()).hexdigest()
        self.commits[oid] = commit
        self.branches[branch] = oid
        return oid

    @property
    def main(self) -> Commit:
        return self.commits[self.branches["main"]]


class HubError(Exception):
    """Answered with its status, `X-Error-Code` and message."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


class HubServer(ThreadingHTTPServer):
    """
    Args:
        users: their names by their tokens. Each may write to the repositories `name/...`, and read these and those
            that are not private.
    """

    daemon_threads = True

    def __init__(self, users: dict[str, str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # by their SHA-256
        self.lfs_suffixes = (".safetensors", ".bin")
        self.log: list[tuple[str, str, int]] = []  # method, path, status
        self.on_upload: Callable[[], Any] = lambda: None  # called before a large file is kept
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, repo_id: str, folder: Path, private: bool = False) -> str:
        """Puts a folder there, without HTTP. Returns the commit's hash."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
        }
        repository = self.repositories[repo_id] = Repository(private)
        return repository.add(Commit("Folder", files), "main")

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer
    timeout = 30  # of a silent connection

    def log_message(self, *args: Any) -> None:
        pass

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, headers, content = self._route([unquote(part) for part in url.path.strip("/").split("/")])
        except HubError as error:
            headers = {"X-Error-Message": str(error), "X-Error-Code": error.code, "X-Repo-Commit": error.commit}
            status, content = error.status, json.dumps({"error": str(error)}).encode()
        self.server.log.append((self.command, url.path, status))
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def _route(self, path: list[str]) -> tuple[int, dict[str, str | None], bytes]:
        match self.command, path:
            case "POST", ["api", "repos", "create"]:
                return self._create(json.loads(self.body))
            case "POST", ["api", "validate-yaml"]:
                return self._validate(json.loads(self.body)["content"])
            case "POST", ["api", "models", owner, name, "preupload", revision]:
                repository = self._repository(f"{owner}/{name}", write=True)
                return self._json(self._preupload(repository, revision, json.loads(self.body)["files"]))
            case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                self._repository(f"{owner}/{name.removesuffix('.git')}", write=True)
                return self._json(self._lfs_batch(json.loads(self.body)["objects"]))
            case "PUT", ["lfs", oid]:
                return self._keep(oid)
            case "POST", ["api", "models", owner, name, "commit", revision]:
                repository = self._repository(f"{owner}/{name}", write=True)
                oid = self._commit(repository, revision, [json.loads(line) for line in self.body.splitlines()])
                url = f"{self.server.endpoint}/{owner}/{name}/commit/{oid}"
                return self._json({"success": True, "commitOid": oid, "commitUrl": url})
            case "POST", ["api", "models", owner, name, "branch", branch]:
                repository = self._repository(f"{owner}/{name}", write=True)
                if branch in repository.branches:
                    raise HubError(409, "Reference already exists")
                start = json.loads(self.body or b"{}").get("startingPoint", "main")
                repository.branches[branch] = self._resolve(repository, start)
                return self._json({})
            case "GET", ["api", "models", owner, name, *revision]:
                repository = self._repository(f"{owner}/{name}")
                match revision:
                    case []:
                        return self._json(self._info(f"{owner}/{name}", repository, "main"))
                    case ["revision", revision]:
                        return self._json(self._info(f"{owner}/{name}", repository, revision))
                    case ["tree", revision, *folder]:
                        return self._json(self._tree(repository, revision, "/".join(folder)))
            case "GET" | "HEAD", [owner, name, "resolve", revision, *file]:
                return self._file(self._repository(f"{owner}/{name}"), revision, "/".join(file))
        raise HubError(404, f"Not known here: {self.command} {self.path}")

    @staticmethod
    def _json(content: Any, status: int = 200) -> tuple[int, dict[str, str | None], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

    # -- who may do what -------------------------------------------------------------------------------------------

    def _user(self) -> str | None:
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        user = self.server.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def _repository(self, repo_id: str, write: bool = False) -> Repository:
        user, owner = self._user(), repo_id.split("/")[0]
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and user != owner):  # which it is, is not for others to know
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise HubError(403, f"You don't have the rights to write to {repo_id}")
        return repository

    # -- what is written -------------------------------------------------------------------------------------------

    def _create(self, options: dict[str, Any]) -> tuple[int, dict[str, str | None], bytes]:
        user = self._user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        owner = options.get("organization") or user
        repo_id = f"{owner}/{options['name']}"
        if owner != user:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        answer = {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            return self._json({"error": "You already created this model repo", **answer}, 409)
        private = options.get("private") is True or options.get("visibility") == "private"
        repository = self.server.repositories[repo_id] = Repository(private)
        repository.add(Commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"}), "main")
        return self._json(answer)

    def _validate(self, content: str) -> tuple[int, dict[str, str | None], bytes]:
        _, metadata, _ = content.split("---\n", 2)
        try:
            errors = [] if isinstance(yaml.safe_load(metadata), dict) else ["no mapping"]
        except yaml.YAMLError as error:
            errors = [str(error)]
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        return self._json(answer, 400 if errors else 200)

    def _preupload(self, repository: Repository, revision: str, files: list[dict[str, Any]]) -> dict[str, Any]:
        commit = repository.commits[self._resolve(repository, revision)]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(self.server.lfs_suffixes) else "regular",
                    "shouldIgnore": False,
                    "oid": commit.oid(file["path"]) if file["path"] in commit.files else None,
                }
                for file in files
            ]
        }

    def _lfs_batch(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        answers = []
        for entry in objects:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.server.large_files:
                answer["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{entry['oid']}"}}
            answers.append(answer)
        return {"transfer": "basic", "objects": answers}

    def _keep(self, oid: str) -> tuple[int, dict[str, str | None], bytes]:
        self.server.on_upload()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "The content is not that of its name")
        self.server.large_files[oid] = self.body
        return 200, {}, b""

    def _commit(self, repository: Repository, revision: str, lines: list[dict[str, Any]]) -> str:
        parent = repository.commits[self._resolve(repository, revision)]
        commit = Commit(lines[0]["value"]["summary"], dict(parent.files), set(parent.lfs))
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            match line["key"]:
                case "file":
                    commit.files[path] = base64.b64decode(value["content"])
                    commit.lfs.discard(path)
                case "lfsFile":
                    if value["oid"] not in self.server.large_files:
                        raise HubError(400, f"The LFS file of {path} was not uploaded")
                    commit.files[path] = self.server.large_files[value["oid"]]
                    commit.lfs.add(path)
                case "deletedFile":
                    del commit.files[path]
                case key:
                    raise HubError(400, f"Not known here: {key}")
        return repository.add(commit, revision)

    # -- what is read ----------------------------------------------------------------------------------------------

    @staticmethod
    def _resolve(repository: Repository, revision: str) -> str:
        """The hash of a commit that is named by a branch or by its hash."""
        oid = repository.branches.get(revision, revision)
        if oid not in repository.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def _info(self, repo_id: str, repository: Repository, revision: str) -> dict[str, Any]:
        oid = self._resolve(repository, revision)
        return {
            "id": repo_id,
            "sha": oid,
            "private": repository.private,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(repository.commits[oid].files)],
        }

    def _tree(self, repository: Repository, revision: str, folder: str) -> list[dict[str, Any]]:
        commit, entries = repository.commits[self._resolve(repository, revision)], []
        for path in sorted(commit.files):
            if folder and not path.startswith(f"{folder}/"):
                continue
            entry = {"type": "file", "path": path, "size": len(commit.files[path]), "oid": commit.oid(path)}
            if path in commit.lfs:
                entry["lfs"] = {"oid": commit.oid(path), "size": entry["size"], "pointerSize": 134}
            entries.append(entry)
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        return entries

    def _file(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str | None], bytes]:
        oid = self._resolve(repository, revision)
        commit = repository.commits[oid]
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", oid)
        headers: dict[str, str | None] = {
            "X-Repo-Commit": oid,
            "ETag": f'"{commit.oid(path)}"',
            "Content-Type": "application/octet-stream",
        }
        return 200, headers, commit.files[path]
