"""A stand-in for a Kubernetes API server: enough for helm's install, upgrade, rollback, test and uninstall, and for
the monitor's patches. Objects are in memory, checked against Kubernetes' own schemas; loopback only.

It shows: order of hooks, release bookkeeping, schema validity, what an upgrade changes, and, with `accounts`, that Roles
allow what is asked. It does not show: scheduling, admission, networking, defaulting, controllers. A Pod succeeds at
once; a Job's end is what `run_job` says.
"""

import base64
import copy
import json
import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import yaml

Object = dict[str, Any]
KINDS = {
    "v1": "Namespace! Pod Service ServiceAccount ConfigMap Secret PersistentVolumeClaim Event Endpoints=endpoints",
    "apps/v1": "Deployment StatefulSet DaemonSet ReplicaSet",
    "batch/v1": "Job CronJob",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "policy/v1": "PodDisruptionBudget",
    "networking.k8s.io/v1": "NetworkPolicy=networkpolicies Ingress=ingresses",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding ClusterRole! ClusterRoleBinding!",
    "monitoring.coreos.com/v1": "ServiceMonitor PodMonitor PrometheusRule",
    "gateway.networking.k8s.io/v1": "HTTPRoute",
    "trainer.kubeflow.org/v1alpha1": "TrainJob TrainingRuntime",
}
"""Kinds that are served; `!` is not namespaced, `=` gives an irregular plural."""


def _resources() -> dict[tuple[str, str], tuple[str, bool]]:
    found = {}
    for group, names in KINDS.items():
        for name in names.split():
            kind, _, plural = name.rstrip("!").partition("=")
            found[group, plural or f"{kind.lower()}s"] = (kind, not name.endswith("!"))
    return found


RESOURCES = _resources()
PATH = re.compile(
    r"/(?:api/(v1)|apis/([^/]+/[^/]+))(?:/namespaces/([^/]+)(?=/))?(?:/([^/]+))?(?:/([^/]+))?(?:/[^/]+)?"
)


class Refused(Exception):
    """An answer that is an error: code, reason, message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def status(self) -> Object:
        """The body that an API server sends."""
        return {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": self.reason, "code": self.code,
            "message": str(self),
        }  # fmt: skip


def _wire_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message: varints and byte strings."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value, at

    at = 0
    while at < len(data):
        tag, at = varint(at)
        if tag & 7 == 0:
            value, at = varint(at)
            yield tag >> 3, value
        elif tag & 7 == 2:
            length, at = varint(at)
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {tag & 7}")


def from_protobuf(raw: bytes) -> Object:
    """A Secret or Namespace as helm 4 posts it; other kinds come as JSON."""
    envelope = dict(_wire_fields(raw[4:]))
    kind = {number: text.decode() for number, text in _wire_fields(envelope[1])}
    found: Object = {"apiVersion": kind[1], "kind": kind[2], "metadata": {}}
    for number, value in _wire_fields(envelope[2]):
        if number == 1:
            for inner, text in _wire_fields(value):
                if inner in (1, 3):
                    found["metadata"]["name" if inner == 1 else "namespace"] = text.decode()
                elif inner in (11, 12):
                    entry = {n: t.decode() for n, t in _wire_fields(text)}
                    name = "labels" if inner == 11 else "annotations"
                    found["metadata"].setdefault(name, {})[entry[1]] = entry.get(2, "")
        elif number == 2 and kind[2] == "Secret":
            entry = dict(_wire_fields(value))
            found.setdefault("data", {})[entry[1].decode()] = base64.b64encode(entry[2]).decode()
        elif number == 3 and kind[2] == "Secret":
            found["type"] = value.decode()
    return found


def merged(old: Object, new: Object) -> Object:
    """JSON merge patch (RFC 7386)."""
    result = copy.deepcopy(old)
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def without(live: Object, before: Object, now: Object) -> Object:
    """`live` without the keys that a manager applied before and applies no more; lists count as one value."""
    result = copy.deepcopy(live)
    for key, value in before.items():
        if key not in now:
            result.pop(key, None)
        elif all(isinstance(side.get(key), dict) for side in (before, now, result)):
            result[key] = without(result[key], value, now[key])
    return result


@dataclass(slots=True)
class FakeKube:
    """The server's state, and its answers as functions of a request."""

    version: str = "1.33"
    run_job: Callable[[Object, "FakeKube"], bool] = lambda job, kube: True
    """Whether a Job ends well; it may look at the objects that are there."""
    accounts: dict[str, str] = field(default_factory=dict)
    """Bearer token to `namespace/serviceaccount`; a caller with such a token may do what its Roles say, others all."""
    objects: dict[tuple[str, str | None, str, str], Object] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    _applied: dict[tuple[Any, ...], Object] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _revision: int = 100

    def find(self, kind: str, name: str, namespace: str | None = "default") -> Object | None:
        """One object, by its kind."""
        for (_, where, plural, called), found in self.objects.items():
            if called == name and where == namespace and plural.startswith(kind.lower()):
                return found
        return None

    def allow(self, token: str, verb: str, namespace: str | None, plural: str, name: str) -> None:
        """Nothing, when the token's Roles allow it.

        Raises:
            Refused: 401 for a token that nobody has, 403 for a verb that no Role gives.
        """
        if token not in self.accounts:
            raise Refused(401, "Unauthorized", "Unauthorized")
        place, _, account = self.accounts[token].partition("/")
        for (_, where, kind, _), binding in list(self.objects.items()):
            if kind != "rolebindings" or where != namespace:
                continue
            subjects = [(s.get("namespace"), s["name"]) for s in binding["subjects"]]
            role = self.find("role", binding["roleRef"]["name"], where)
            if (place, account) not in subjects or role is None:
                continue
            for rule in role["rules"]:
                names = rule.get("resourceNames")
                if (
                    verb in rule["verbs"]
                    and plural in rule["resources"]
                    and (not names or name in names)
                ):
                    return
        message = f'{plural} "{name}" is forbidden: User "system:serviceaccount:{place}:{account}" cannot {verb} it'
        raise Refused(403, "Forbidden", message)

    def put(
        self, group: str, namespace: str | None, plural: str, body: Object, name: str
    ) -> Object:
        """Check and store an object; a Pod and a Job have ended when they are stored."""
        kind = RESOURCES[group, plural][0]
        body.setdefault("apiVersion", group)
        body.setdefault("kind", kind)
        checked = copy.deepcopy(body)
        checked.pop("status", None)
        checked["metadata"].pop("managedFields", None)
        try:
            kubernetes_validate.validate(checked, self.version, strict=True)
        except kubernetes_validate.ValidationError as why:
            where = ".".join(map(str, why.path))
            message = f'{kind} "{name}" is invalid: {where}: {why.message}'
            raise Refused(422, "Invalid", message) from why
        except kubernetes_validate.SchemaNotFoundError:
            pass  # custom resources are checked with their own models
        self._revision += 1
        meta = body["metadata"]
        if namespace:
            meta["namespace"] = namespace
        meta.update(uid=meta.get("uid") or str(uuid.uuid4()), resourceVersion=str(self._revision))
        meta.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        if kind == "Pod":
            body["status"] = {
                "phase": "Succeeded",
                "conditions": [{"type": "Ready", "status": "True"}],
            }
        if kind == "Job":
            ended = self.run_job(body, self)
            condition = {"type": "Complete" if ended else "Failed", "status": "True"}
            body["status"] = {"succeeded" if ended else "failed": 1, "conditions": [condition]}
        self.objects[group, namespace, plural, name] = body
        return body

    def write(
        self,
        method: str,
        where: tuple[str, str | None, str, str | None],
        body: Object,
        query: dict[str, list[str]],
        kind: str,
    ) -> tuple[int, Object]:
        """POST, PUT and PATCH."""
        group, namespace, plural, name = where
        name = name or body["metadata"]["name"]
        key = (group, namespace, plural, name)
        with self._lock:
            old = self.objects.get(key)
            if method == "POST" and old:
                raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
            new = body
            if method == "PATCH" and "apply" in kind:  # what other managers own stays
                manager = (*key, query.get("fieldManager", [""])[0])
                new = (
                    merged(without(old, self._applied.get(manager, {}), body), body)
                    if old
                    else body
                )
                self._applied[manager] = copy.deepcopy(body)
            elif method == "PATCH":
                if not old:
                    raise Refused(404, "NotFound", f'{plural} "{name}" not found')
                new = merged(old, body)
            if "dryRun" in query:
                return (200 if old else 201), new
            return (200 if old else 201), self.put(
                group, namespace, plural, copy.deepcopy(new), name
            )

    def listed(
        self, group: str, namespace: str | None, plural: str, query: dict[str, list[str]]
    ) -> list[Object]:
        """Objects that selectors choose."""

        def pairs(name: str) -> dict[str, str]:
            text = query.get(name, [""])[0]
            return dict(p.split("=", 1) for p in text.split(",") if "=" in p and "!" not in p)

        labels, fields = pairs("labelSelector"), pairs("fieldSelector")
        with self._lock:
            return [
                found
                for (g, n, p, _), found in self.objects.items()
                if (g, p) == (group, plural)
                and namespace in (None, n)
                and all(found["metadata"].get("labels", {}).get(k) == v for k, v in labels.items())
                and fields.get("metadata.name") in (None, found["metadata"]["name"])
            ]

    def discovery(self, path: str) -> Object | None:
        """Answers about the API itself."""

        def api_path(group: str) -> str:
            return ("api/" if group == "v1" else "apis/") + group

        if path == "/version":
            major, minor = self.version.split(".")
            return {"major": major, "minor": minor, "gitVersion": f"v{self.version}.0"}
        if path == "/api":
            return {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}
        if path == "/apis":
            groups = []
            for group in (g for g in KINDS if "/" in g):
                version = {"groupVersion": group, "version": group.split("/")[1]}
                groups.append(
                    {
                        "name": group.split("/")[0],
                        "versions": [version],
                        "preferredVersion": version,
                    }
                )
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path == "/openapi/v3":
            return {
                "paths": {
                    api_path(g): {"serverRelativeURL": f"/openapi/v3/{api_path(g)}"} for g in KINDS
                }
            }
        if path.startswith(
            "/openapi/v3/"
        ):  # says that fieldValidation is known, so that helm leaves it to us
            return _openapi(path.removeprefix("/openapi/v3/"))
        return None

    def serve(
        self, tls: ssl.SSLContext | None = None, port: int = 0, host: str = "127.0.0.1"
    ) -> ThreadingHTTPServer:
        """A server in a thread of its own; `server_port` says where, `shutdown` ends it."""
        server = ThreadingHTTPServer((host, port), _page(self))
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


def _openapi(path: str) -> Object:
    group = path.split("/", 1)[1]
    name, _, version = group.rpartition("/")
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {}
    for (found, plural), (kind, _) in RESOURCES.items():
        if found == group:
            patch = {
                "parameters": [parameter],
                "responses": {},
                "x-kubernetes-group-version-kind": {
                    "group": name,
                    "version": version,
                    "kind": kind,
                },
            }
            paths[f"/{path}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "fake", "version": "1"}, "paths": paths}


VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def _page(kube: FakeKube) -> type[BaseHTTPRequestHandler]:
    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Tests look at `requests` instead."""

        def _send(self, code: int, body: Object) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _go(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length) if length else b""
            kube.requests.append((self.command, self.path))
            try:
                self._answer(raw)
            except Refused as why:
                self._send(why.code, why.status())

        def _answer(self, raw: bytes) -> None:
            url = urlparse(self.path)
            path, query = url.path.rstrip("/"), parse_qs(url.query)
            if (said := kube.discovery(path)) is not None:
                return self._send(200, said)
            match = PATH.fullmatch(path)
            group = match and (match[1] or match[2])
            if match is None or group not in KINDS:
                raise Refused(404, "NotFound", path)
            namespace, plural, name = match[3], match[4], match[5]
            if not plural:
                return self._send(200, _resource_list(group))
            if (group, plural) not in RESOURCES:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            if kube.accounts:
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                kube.allow(token, VERBS[self.command], namespace, plural, name or "")
            if self.command == "GET" and name is None:
                return self._list(group, namespace, plural, query)
            if self.command in ("GET", "DELETE"):
                take = (
                    kube.objects.get
                    if self.command == "GET"
                    else lambda k: kube.objects.pop(k, None)
                )
                found = take((group, namespace, plural, name))
                if found is None:
                    raise Refused(404, "NotFound", f'{plural} "{name}" not found')
                return self._send(200, found)
            body = from_protobuf(raw) if raw[:4] == b"k8s\0" else yaml.safe_load(raw)
            kind = self.headers.get("Content-Type", "")
            self._send(
                *kube.write(self.command, (group, namespace, plural, name), body, query, kind)
            )

        def _list(
            self, group: str, namespace: str | None, plural: str, query: dict[str, list[str]]
        ) -> None:
            if query.get("sendInitialEvents"):  # the client falls back to list and watch
                raise Refused(422, "Invalid", "sendInitialEvents is forbidden")
            found = kube.listed(group, namespace, plural, query)
            if not query.get("watch"):
                kind = RESOURCES[group, plural][0]
                meta = {"resourceVersion": str(kube._revision)}
                return self._send(
                    200,
                    {"kind": f"{kind}List", "apiVersion": group, "metadata": meta, "items": found},
                )
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if query.get("resourceVersion", ["0"])[0] in ("", "0"):
                for one in found:
                    line = (json.dumps({"type": "ADDED", "object": one}) + "\n").encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            time.sleep(8)  # a watch that ends at once is logged as an error by helm
            try:
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                return

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _go

    return Page


def _resource_list(group: str) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "namespaced": spaced,
            "kind": kind,
            "verbs": verbs,
        }
        for (found, plural), (kind, spaced) in RESOURCES.items()
        if found == group
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group,
        "resources": resources,
    }
