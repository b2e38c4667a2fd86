"""A loopback stand-in for a W&B server, in a thread of the test: enough for the real client's online mode.

    with Loopback() as server:
        ...                       # WANDB_BASE_URL=server.url
        server.runs["id"].config  # what a project page would show

It keeps runs as the real one does: a file stream's chunk replaces the lines from its offset on, a resumed run is told how many
lines there are. `Loopback("500")` answers every request with an error, `Loopback("hang")` accepts and never answers.
"""

from __future__ import annotations

import base64
import collections
import gzip
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class RunState:
    name: str
    project: str
    group: str | None = None
    job_type: str | None = None
    display_name: str = ""
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the history, by offset
    exit_code: int | None = None
    inserted: int = 0

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in self.raw_config.items() if k != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.lines[i] for i in sorted(self.lines)]


class Loopback:
    def __init__(self, mode: Literal["ok", "500", "hang"] = "ok") -> None:
        self.mode = mode
        self.runs: dict[str, RunState] = {}
        self.files: dict[str, bytes] = {}
        self.operations: collections.Counter[str] = collections.Counter()
        self.unknown: list[str] = []
        self.views: list[dict[str, Any]] = []  # saved workspaces and reports
        self.raw: list[bytes] = []  # every body, as it came
        self.released = threading.Event()
        owner = self

        class Handler(_Handler):
            loopback = owner

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Loopback:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(query|mutation)\s+(\w+)", query)
        name = match[2] if match else query[:40]
        self.operations[name] += 1
        entity = {"id": "RW50", "name": "someone", "__typename": "Entity"}
        if name.lower() in ("viewer", "getviewer", "getdefaultentity"):
            return {"viewer": {
                "id": "VXNl", "entity": "someone", "username": "someone", "flags": "{}", "admin": False, "email": "s@x.org",
                "name": "someone", "teams": {"edges": []}, "apiKeys": {"edges": []}, "deletedAt": None, "__typename": "User",
            }}  # fmt: skip
        if "serverInfo" in query:
            return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None,
                                   "features": [], "exposedFeatures": []},
                    "viewer": {"id": "x", "entity": "someone", "flags": "{}"}}  # fmt: skip
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": self._upsert(given, entity), "inserted": True}}
        if "historyLineCount" in query and "bucket" in query:
            return {"model": {"id": "UHJv", "name": given.get("project"), "entity": entity, "bucket": self._resumed(given)}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/up/{given.get('run')}/{f}"} for f in given.get("files", [])]
            return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": files}}
        if "upsertView" in query:
            self.views.append(given)
            same = {name: given.get(name) for name in ("type", "name", "displayName", "description", "spec")}
            project = {"id": "UHJv", "name": given.get("projectName"), "entityName": given.get("entityName")}
            id = given.get("id") or f"Vmlldw{len(self.views)}"
            view = {**same, "id": id, "project": project, "updatedAt": None, "createdAt": None}
            return {"upsertView": {"view": view, "inserted": True}}
        if "createArtifact" in query:
            return {"createArtifact": {"artifact": {"id": "QXJ0", "state": "COMMITTED", "digest": "0", "artifactSequence":
                    {"id": "U2Vx", "latestArtifact": None}, "currentManifest": None}}}  # fmt: skip
        if "useArtifact" in query:
            return {"useArtifact": {"artifact": {"id": "QXJ0"}}}
        if re.search(r"__type\b|__schema\b", query):
            return dict.fromkeys(re.findall(r"(\w+)\s*:\s*__type", query)) | {"__type": None}
        if name == "GetProjects":
            projects = [
                {"id": "UHJv", "name": project, "entityName": "someone", "createdAt": "", "isBenchmark": False, "user": None}
                for project in sorted({run.project for run in self.runs.values()})
            ]
            return {"models": {"edges": [{"node": p} for p in projects], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if name == "ProjectInternalId":
            there = any(run.project == given["projectName"] for run in self.runs.values())
            return {"project": {"id": "UHJv", "internalId": "UHJvaW50"} if there else None}
        if "upsertModel" in query:
            return {"upsertModel": {"model": {"id": "UHJv", "name": given.get("name")}, "project": {"id": "UHJv", "name": "p"}}}
        self.unknown.append(f"{name} {' '.join(query.split())[:300]}")
        return {"model": None, "project": None, "entity": None}

    def _upsert(self, given: dict[str, Any], entity: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or "unnamed"
        run = self.runs.setdefault(name, RunState(name, given.get("project") or ""))
        run.inserted += 1
        run.group = given.get("groupName") or run.group
        run.job_type = given.get("jobType") or run.job_type
        run.display_name = given.get("displayName") or run.display_name
        run.tags = given.get("tags") if given.get("tags") is not None else run.tags
        if given.get("config"):
            run.raw_config = json.loads(given["config"])
        if given.get("summaryMetrics"):
            run.summary = json.loads(given["summaryMetrics"])
        return self._bucket(run) | {"project": {"id": "UHJv", "name": run.project, "entity": entity}}

    def _bucket(self, run: RunState) -> dict[str, Any]:
        return {
            "id": base64.b64encode(run.name.encode()).decode(), "name": run.name, "displayName": run.display_name,
            "description": None, "config": json.dumps(run.raw_config), "summaryMetrics": json.dumps(run.summary),
            "sweepName": None,
            "historyLineCount": len(run.lines), "eventsLineCount": 0, "logLineCount": 0, "tags": run.tags,
            "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]), "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip

    def _resumed(self, given: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(given.get("name") or given.get("run") or "")
        return self._bucket(run) if run else None

    def stream(self, name: str, body: dict[str, Any]) -> None:
        run = self.runs.setdefault(name, RunState(name, ""))
        for file, chunk in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk.get("content", [])] if file in (HISTORY, SUMMARY) else []
            if file == HISTORY:
                run.lines |= {chunk["offset"] + i: line for i, line in enumerate(lines)}
            elif lines:
                run.summary = lines[-1]
        if body.get("complete"):
            run.exit_code = body.get("exitcode", 0)


class _Handler(http.server.BaseHTTPRequestHandler):
    loopback: Loopback

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def _send(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.loopback.raw.append(body)
        return body

    def _refused(self) -> bool:
        if self.loopback.mode == "hang":
            self.loopback.released.wait()
            return True
        if self.loopback.mode == "500":
            self._send({"error": "out of order"}, 500)
            return True
        return False

    def do_GET(self) -> None:
        if not self._refused():
            self._send({})

    def do_PUT(self) -> None:
        body = self._body()
        if not self._refused():
            self.loopback.files[self.path.partition("?")[0]] = body
            self._send({})

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        if self.path.endswith("/file_stream"):
            self.loopback.stream(self.path.split("/")[-2], json.loads(body))
            self._send({"limits": {}})
        elif self.path == "/graphql":
            asked = json.loads(body)
            self._send({"data": self.loopback.graphql(asked["query"], asked.get("variables") or {})})
        else:
            self._send({})
