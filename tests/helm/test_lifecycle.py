"""A release's life against a stand-in for the API server: install, upgrade, rollback, test, uninstall, by real helm.

The policy check's Job really runs: its command, on the ConfigMap that the hook made. What the stand-in cannot show
(scheduling, admission, networking, defaulting) is said in docs/kubernetes.md.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.helm.fake_kube import FakeKube
from tests.helm.kube_api import Object
from tests.helm.kube_server import serve
from tests.helm.render import CHART, ROOT, Helm, HelmFailed, containers

pytestmark = pytest.mark.slow

GOOD = """\
version: 1
backends: {{teacher: {{kind: openai, base_url: "https://example.com/v1"}}}}
default: {{teacher: {{backend: {backend}}}, mode: teacher}}
"""


def run_check(job: Object, kube: FakeKube, folder: Path) -> bool:
    """What the kubelet would do with the policy check: its files, its command."""
    if not job["metadata"]["name"].endswith("-policy-check"):
        return True
    spec = job["spec"]["template"]["spec"]
    ((container, _),) = containers(job["spec"]["template"])
    (volume,) = [v for v in spec["volumes"] if v["name"] == "policy"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "policy"]
    for source in volume["projected"]["sources"]:
        found = kube.find("configmap", source["configMap"]["name"])
        assert found is not None, "the hook's ConfigMap is there before its Job"
        for item in source["configMap"]["items"]:
            (folder / item["path"]).write_text(found["data"][item["key"]])
    arguments = [a.replace(mount["mountPath"], str(folder)) for a in container["args"]]
    assert container["command"] == ["graduate"]
    done = subprocess.run(
        [sys.executable, "-m", "graduate", *arguments], cwd=ROOT, capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def kube(tmp_path: Path) -> FakeKube:
    """An empty cluster that runs policy checks."""
    folder = tmp_path / "check"
    folder.mkdir()
    return FakeKube(run_job=lambda job, kube: run_check(job, kube, folder))


@pytest.fixture
def cluster(kube: FakeKube, each_helm: Helm, tmp_path: Path) -> Iterator[Helm]:
    """A helm that talks to it."""
    server = serve(kube)
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "default"}}],
        "users": [{"name": "fake", "user": {}}],
    }  # fmt: skip
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    yield replace(each_helm, environment={**each_helm.environment, "KUBECONFIG": str(file)})
    server.shutdown()
    server.server_close()


def policy(tmp_path: Path, backend: str = "teacher") -> Path:
    """A policy file; another backend's name than `teacher` makes it a bad one."""
    file = tmp_path / f"{backend}.yaml"
    file.write_text(GOOD.format(backend=backend))
    return file


def data(kube: FakeKube, name: str) -> dict[str, str]:
    """A ConfigMap's data."""
    found = kube.find("configmap", name)
    assert found is not None
    values: dict[str, str] = found.get("data", {})
    return values


def test_a_release_lives_and_goes(cluster: Helm, kube: FakeKube, tmp_path: Path) -> None:
    file = f"policy.text={policy(tmp_path)}"
    cluster.run("install", "graduate", CHART, "--set-file", file)
    first = data(kube, "graduate-policy")
    assert kube.find("deployment", "graduate-router") is not None
    assert kube.find("job", "graduate-policy-check") is None, "a hook that succeeded is gone"

    kube.write(
        "PATCH", ("v1", "default", "configmaps", "graduate-rollouts"),
        {"data": {"rollouts.yaml": "version: 1\n"}}, {"fieldManager": ["graduate-monitor"]}, "application/merge-patch+json",
    )  # fmt: skip
    edited = policy(tmp_path).read_text() + "# edited\n"
    policy(tmp_path).write_text(edited)
    cluster.run("upgrade", "graduate", CHART, "--set-file", file, "--set", "router.replicas=3")
    router = kube.find("deployment", "graduate-router")
    assert router is not None
    assert router["spec"]["replicas"] == 3
    assert data(kube, "graduate-policy")["policy.yaml"] == edited
    assert data(kube, "graduate-rollouts") == {"rollouts.yaml": "version: 1\n"}, (
        "the monitor's state outlives an upgrade"
    )

    cluster.run("rollback", "graduate", "1")
    assert data(kube, "graduate-policy") == first
    assert data(kube, "graduate-rollouts") == {"rollouts.yaml": "version: 1\n"}
    assert "Succeeded" in cluster.run("test", "graduate")
    assert len(cluster.run("history", "graduate").splitlines()) == 4

    cluster.run("uninstall", "graduate")
    left = [f"{o['kind']}/{o['metadata']['name']}" for o in kube.objects.values()]
    assert left == ["PersistentVolumeClaim/graduate-state"], (
        "traffic, adapters and datasets are kept"
    )


def test_a_bad_policy_stops_the_upgrade_before_it_touches_anything(
    cluster: Helm, kube: FakeKube, tmp_path: Path
) -> None:
    cluster.run("install", "graduate", CHART, "--set-file", f"policy.text={policy(tmp_path)}")
    before = data(kube, "graduate-policy")
    bad = f"policy.text={policy(tmp_path, 'nobody')}"
    with pytest.raises(HelmFailed, match="policy-check"):
        cluster.run(
            "upgrade",
            "graduate",
            CHART,
            "--set-file",
            bad,
            "--set",
            "router.replicas=5",
            "--timeout",
            "30s",
        )
    assert data(kube, "graduate-policy") == before
    router = kube.find("deployment", "graduate-router")
    assert router is not None
    assert router["spec"]["replicas"] == 1
    assert kube.find("job", "graduate-policy-check") is not None, (
        "a hook that failed stays, for its log"
    )


def test_the_production_example_installs(cluster: Helm, kube: FakeKube) -> None:
    kube.run_job = lambda job, kube: True  # its keys come from a Secret that only the operator has
    cluster.run("install", "graduate", CHART, "--values", CHART / "ci" / "production.yaml")
    assert kube.find("statefulset", "graduate-lorax-llama") is not None
    assert kube.find("horizontalpodautoscaler", "graduate-router") is not None
