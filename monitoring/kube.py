"""The rollouts' ConfigMap: how a canary's move reaches routers in a cluster. Reads it, and patches this one object.

The monitor writes `rollouts.yaml` under its home as everywhere; in a cluster it then puts the same text into a
ConfigMap that the routers mount. The file is the truth while it is there; a monitor that lost its volume takes it back
from the ConfigMap. Needs the verbs get and patch on that one name. Knows nothing of rollouts but their text.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from monitoring.errors import MonitoringError

KEY = "rollouts.yaml"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS = 10.0
FIELD_MANAGER = "graduate-monitor"


class ClusterError(MonitoringError):
    """The Kubernetes API cannot be asked, or refuses."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the API server is, and who we are to it. The token is read anew each time: the kubelet replaces it."""

    url: str
    namespace: str
    token_file: Path
    verify: ssl.SSLContext | bool = True

    @classmethod
    def inside(cls, host: str, port: str, account: Path = SERVICE_ACCOUNT) -> "Cluster":
        """The cluster that this pod runs in; host and port are `KUBERNETES_SERVICE_HOST` and `_PORT`.

        Raises:
            ClusterError: the service account's files are not there.
        """
        try:
            namespace = (account / "namespace").read_text().strip()
            trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as why:
            raise ClusterError(
                f"{account}: {why.strerror}: the pod has no service account token"
            ) from why
        shown = f"[{host}]" if ":" in host else host
        return cls(f"https://{shown}:{port}", namespace, account / "token", trust)


@dataclass(frozen=True, slots=True)
class RolloutsConfigMap:
    """One ConfigMap, and the file that is kept equal to it."""

    cluster: Cluster
    name: str
    transport: httpx.BaseTransport | None = field(default=None, repr=False)

    def restore(self, file: Path) -> bool:
        """`file` is there when the ConfigMap has rollouts; True when it was taken from it. A file that is there stays.

        Raises:
            ClusterError: the API cannot be asked, or refuses.
        """
        if file.exists():
            return False
        text = self.read()
        if text is None:
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.restored")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(file)
        return True

    def publish(self, file: Path) -> bool:
        """The ConfigMap holds what `file` holds; True when it had to be patched. No file, nothing to say.

        Raises:
            ClusterError: the API cannot be asked, or refuses; the next call tries again.
        """
        if not file.exists():
            return False
        text = file.read_text(encoding="utf-8")
        if self.read() == text:
            return False
        self._ask("PATCH", {"data": {KEY: text}})
        return True

    def read(self) -> str | None:
        """The rollouts in the ConfigMap; None while it has none.

        Raises:
            ClusterError: the API cannot be asked, or refuses.
        """
        text = (self._ask("GET", None).get("data") or {}).get(KEY)
        return text if isinstance(text, str) else None

    def _ask(self, method: str, patch: dict[str, Any] | None) -> dict[str, Any]:
        cluster = self.cluster
        path = f"/api/v1/namespaces/{cluster.namespace}/configmaps/{self.name}"
        what = f"ConfigMap {cluster.namespace}/{self.name}"
        try:
            headers = {"Authorization": f"Bearer {cluster.token_file.read_text().strip()}"}
        except OSError as why:
            raise ClusterError(f"{cluster.token_file}: {why.strerror}") from why
        if patch is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        try:
            with httpx.Client(
                base_url=cluster.url, verify=cluster.verify, timeout=TIMEOUT_SECONDS,
                transport=self.transport, trust_env=False,
            ) as client:  # fmt: skip
                reply = client.request(
                    method, path, headers=headers, json=patch,
                    params={"fieldManager": FIELD_MANAGER} if patch else None,
                )  # fmt: skip
            body = reply.json()
        except (httpx.HTTPError, ValueError) as why:
            raise ClusterError(
                f"{what}: {cluster.url} cannot be asked: {why or type(why).__name__}"
            ) from why
        if reply.status_code >= 400:
            verb = "patch" if patch is not None else "get"
            said = body.get("message", "") if isinstance(body, dict) else ""
            raise ClusterError(f"{what}: cannot {verb}: HTTP {reply.status_code}: {said}")
        if not isinstance(body, dict):
            raise ClusterError(f"{what}: the answer is not an object")
        return body


@contextlib.contextmanager
def rollouts_in_cluster(file: Path, configmap: str | None) -> Iterator[None]:
    """Around a change: the rollouts are taken from the ConfigMap when the home has lost them, and put there afterwards.

    Args:
        configmap: its name; None outside a cluster, where nothing is to do.

    Raises:
        ClusterError: not in a pod, or the API cannot be asked, or refuses.
    """
    if configmap is None:
        yield
        return
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
    if not host or not port:
        raise ClusterError(
            f"--rollouts-configmap {configmap}: allowed only in a pod (KUBERNETES_SERVICE_HOST is not set)"
        )
    shared = RolloutsConfigMap(Cluster.inside(host, port), configmap)
    shared.restore(file)
    yield
    shared.publish(file)
