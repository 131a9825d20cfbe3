"""The stand-in's HTTP side: `serve` puts a FakeKube on a port of the loopback interface."""

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

from tests.helm.fake_kube import FakeKube, Refused
from tests.helm.kube_api import KINDS, PATH, RESOURCES, Object, discovery, resource_list
from tests.helm.kube_wire import from_protobuf

VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Server(ThreadingHTTPServer):
    """A thread a connection; all of them ask the same state."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], kube: FakeKube) -> None:
        super().__init__(address, Page)
        self.kube = kube


class Page(BaseHTTPRequestHandler):
    """One request to the `FakeKube` of its server."""

    server: "Server"
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
        self.server.kube.requests.append((self.command, self.path))
        try:
            self._answer(raw)
        except Refused as why:
            self._send(why.code, why.status())

    def _answer(self, raw: bytes) -> None:
        url = urlparse(self.path)
        path, query = url.path.rstrip("/"), parse_qs(url.query)
        if (said := discovery(path, self.server.kube.version)) is not None:
            return self._send(200, said)
        match = PATH.fullmatch(path)
        group = match and (match[1] or match[2])
        if match is None or group not in KINDS:
            raise Refused(404, "NotFound", path)
        namespace, plural, name = match[3], match[4], match[5]
        if not plural:
            return self._send(200, resource_list(group))
        if (group, plural) not in RESOURCES:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if self.server.kube.accounts:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self.server.kube.allow(token, VERBS[self.command], namespace, plural, name or "")
        if self.command == "GET" and name is None:
            return self._list(group, namespace, plural, query)
        if self.command in ("GET", "DELETE"):
            take = (
                self.server.kube.objects.get
                if self.command == "GET"
                else lambda k: self.server.kube.objects.pop(k, None)
            )
            found = take((group, namespace, plural, name))
            if found is None:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            return self._send(200, found)
        body = from_protobuf(raw) if raw[:4] == b"k8s\0" else yaml.safe_load(raw)
        kind = self.headers.get("Content-Type", "")
        self._send(
            *self.server.kube.write(
                self.command, (group, namespace, plural, name), body, query, kind
            )
        )

    def _list(
        self, group: str, namespace: str | None, plural: str, query: dict[str, list[str]]
    ) -> None:
        if query.get("sendInitialEvents"):  # the client falls back to list and watch
            raise Refused(422, "Invalid", "sendInitialEvents is forbidden")
        found = self.server.kube.listed(group, namespace, plural, query)
        if not query.get("watch"):
            kind = RESOURCES[group, plural][0]
            meta = {"resourceVersion": str(self.server.kube._revision)}
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


def serve(
    kube: FakeKube, tls: ssl.SSLContext | None = None, port: int = 0, host: str = "127.0.0.1"
) -> Server:
    """A server in a thread of its own; `server_port` says where, `shutdown` ends it."""
    server = Server((host, port), kube)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
