"""The monitor's ConfigMap: TLS, the service account's token, and no more rights than the chart's Role gives."""

import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from monitoring.kube import Cluster, ClusterError, RolloutsConfigMap
from tests.helm.fake_kube import FakeKube
from tests.helm.kube_api import Object
from tests.helm.kube_server import serve

NAME = "graduate-rollouts"
ROLE: list[Object] = [
    {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [NAME],
        "verbs": ["get", "patch"],
    }
]
"""What the chart renders; test_render.py holds the chart to it."""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command: list[str | Path] = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=kubernetes",
        "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=critical,digitalSignature,keyCertSign",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@dataclass(frozen=True, slots=True)
class Place:
    """An API server, a service account's folder, and what ties them."""

    kube: FakeKube
    port: int
    account: Path

    def rollouts(self, name: str = NAME) -> RolloutsConfigMap:
        """As in a pod."""
        return RolloutsConfigMap(Cluster.inside("127.0.0.1", str(self.port), self.account), name)


@pytest.fixture
def place(certificate: tuple[Path, Path], tmp_path: Path) -> Iterator[Place]:
    """A cluster with the chart's ConfigMap, Role and RoleBinding."""
    kube = FakeKube()
    label = {"metadata": {"name": NAME}}
    kube.put("v1", "apps", "configmaps", {**label}, NAME)
    kube.put("v1", "apps", "configmaps", {"metadata": {"name": "other"}}, "other")
    role = {"metadata": {"name": "monitor"}, "rules": ROLE}
    kube.put("rbac.authorization.k8s.io/v1", "apps", "roles", role, "monitor")
    binding = {
        "metadata": {"name": "monitor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "monitor"},
        "subjects": [{"kind": "ServiceAccount", "name": "monitor", "namespace": "apps"}],
    }
    kube.put("rbac.authorization.k8s.io/v1", "apps", "rolebindings", binding, "monitor")
    kube.accounts = {"good-token": "apps/monitor", "stranger": "apps/default"}
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    server = serve(kube, tls)
    account = tmp_path / "account"
    account.mkdir()
    (account / "namespace").write_text("apps")
    (account / "token").write_text("good-token\n")
    (account / "ca.crt").write_bytes(certificate[0].read_bytes())
    yield Place(kube, server.server_port, account)
    server.shutdown()
    server.server_close()


def test_rollouts_are_published_once_and_only_data_changes(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "rollouts.yaml"
    shared = place.rollouts()
    assert not shared.publish(file)
    file.write_text("version: 1\n")
    assert shared.publish(file)
    assert not shared.publish(file), "equal already"
    found = place.kube.find("configmap", NAME, "apps")
    assert found is not None
    assert found["data"] == {"rollouts.yaml": "version: 1\n"}
    assert [m for m, _ in place.kube.requests].count("PATCH") == 1
    assert any("fieldManager=graduate-monitor" in path for _, path in place.kube.requests)


def test_a_monitor_that_lost_its_volume_takes_the_rollouts_back(
    place: Place, tmp_path: Path
) -> None:
    file = tmp_path / "home" / "rollouts.yaml"
    shared = place.rollouts()
    assert not shared.restore(file), "nothing there yet"
    (tmp_path / "before.yaml").write_text("version: 1\nroutes: {}\n")
    shared.publish(tmp_path / "before.yaml")
    assert shared.restore(file)
    assert file.read_text() == "version: 1\nroutes: {}\n"
    file.write_text("mine")
    assert not shared.restore(file)
    assert file.read_text() == "mine", "a file that is there stays"


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("good-token", "other", "HTTP 403"),
        ("good-token", "missing", "HTTP 403"),
        ("stranger", NAME, "HTTP 403"),
        ("expired", NAME, "HTTP 401"),
    ],
    ids=["another ConfigMap", "one that is not there", "another account", "a token nobody has"],
)
def test_the_role_gives_nothing_else(place: Place, token: str, name: str, said: str) -> None:
    (place.account / "token").write_text(token)
    with pytest.raises(ClusterError, match=said):
        place.rollouts(name).read()


def test_a_token_that_the_kubelet_replaced_is_read_again(place: Place) -> None:
    shared = place.rollouts()
    (place.account / "token").write_text("expired")
    with pytest.raises(ClusterError):
        shared.read()
    (place.account / "token").write_text("good-token")
    assert shared.read() is None


def test_a_server_with_another_certificate_is_not_believed(place: Place, tmp_path: Path) -> None:
    command: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    subprocess.run(
        [*command, "-keyout", tmp_path / "k", "-out", place.account / "ca.crt", "-subj", "/CN=x"],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ClusterError, match="cannot be asked"):
        place.rollouts().read()


def test_without_a_token_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no service account token"):
        Cluster.inside("127.0.0.1", "1", tmp_path / "nothing")


def test_a_server_that_answers_nonsense_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    nonsense = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    shared = RolloutsConfigMap(Cluster("http://kube", "apps", tmp_path / "token"), NAME, nonsense)
    with pytest.raises(ClusterError, match="cannot be asked"):
        shared.read()
