"""A fit as a Kubernetes Job or a Kubeflow TrainJob: the manifest, and its submission by kubectl.

The pod runs `graduate train fit` over the shared claim that the chart's pods have, so the run lands where evaluation and
publishing look for it. Several processes are started by torchrun: Kubeflow gives it its numbers by the environment
(PET_*), `accelerate launch` would override them. Rendering is pure.
"""

import json
import re
import shutil
import subprocess
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.config import FitConfig
from training.errors import ConfigError

Backend = Literal["local", "k8s-job", "trainjob"]
SUBMIT_SECONDS = 60.0
USER = 10001
"""User and group of the project's images."""


class Cluster(BaseModel):
    """`--cluster FILE`: where and with what a fit runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: str = "default"
    image: str = "graduate/training:0.1.0"
    """Image with the extras that the engine needs."""
    claim: str = "graduate-state"
    """PersistentVolumeClaim with datasets, runs and base models, one folder each."""
    home: str = "/var/lib/graduate"
    """Where the claim is mounted."""
    processes: int = Field(default=1, ge=1)
    """Processes a node; above 1 the fit is started by torchrun, one process a GPU."""
    nodes: int = Field(default=1, ge=1)
    """Nodes of a TrainJob; a Job has one."""
    gpus: int = Field(default=0, ge=0)
    """GPUs a node."""
    cpu: str = "4"
    """CPUs that a pod asks for."""
    memory: str = "16Gi"
    """Memory that a pod asks for and may use."""
    node_selector: dict[str, str] = {}
    service_account: str | None = None
    secrets: tuple[str, ...] = ()
    """Secrets whose keys become environment variables, such as one with HF_TOKEN."""
    runtime: str = "torch-distributed"
    """A TrainJob's runtime."""
    runtime_kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    backoff_limit: int = Field(default=2, ge=0)
    """Further tries of a pod that fails; an interrupted run goes on."""
    active_deadline_seconds: int = Field(default=86_400, ge=1)
    ttl_seconds: int = Field(default=604_800, ge=0)
    """How long a finished job stays."""


def assignments(config: FitConfig) -> list[str]:
    """The configuration as `--set` words: what differs from the defaults.

    Raises:
        ConfigError: it names a file of this machine.
    """
    if config.explanations is not None:
        raise ConfigError(
            f"explanations.file = {str(config.explanations.file)!r}: a file of this machine, so only for --backend local"
        )
    for stage in config.stages:
        if stage.dataset is not None:
            raise ConfigError(
                f"stages.dataset = {str(stage.dataset)!r}: a folder of this machine, so only for --backend local"
            )
    return [
        f"{key}={json.dumps(value, default=_plain)}"
        for key, value in _differing(config, FitConfig())
    ]


def _plain(value: Any) -> Any:
    """A stage as the mapping that it is in the run file."""
    return value.model_dump(mode="json", exclude_defaults=True)


def _differing(one: Any, default: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in type(one).model_fields:
        value, usual = getattr(one, name), getattr(default, name)
        if isinstance(value, BaseModel):
            found += _differing(value, usual, f"{prefix}{name}.")
        elif value != usual:
            found.append((prefix + name, value))
    return found


def name_of(run: str) -> str:
    """A run's name as a Kubernetes name: lower case, digits and dashes, at most 50 characters."""
    return re.sub(r"[^a-z0-9-]+", "-", f"fit-{run}".lower())[:50].strip("-")


def words(
    cluster: Cluster, config: FitConfig, *, dataset: str, model: str, run: str, launcher: list[str]
) -> list[str]:
    """The pod's command line; the run's folder is the job's, so that a pod that starts again goes on with it."""
    home = PurePosixPath(cluster.home)
    return [
        *launcher, "graduate", "train", "fit", f"--home={home}", f"--dataset={home / 'datasets' / dataset}",
        f"--model={model}", f"--run-folder={home / 'runs' / run}", "--json",
        *[word for one in assignments(config) for word in ("--set", one)],
    ]  # fmt: skip


def job(
    cluster: Cluster, config: FitConfig, *, dataset: str, model: str, run: str
) -> dict[str, Any]:
    """A batch/v1 Job of one pod.

    Raises:
        ConfigError: more than one node.
    """
    if cluster.nodes > 1:
        raise ConfigError(f"nodes = {cluster.nodes}: a Job has 1; use --backend trainjob")
    launcher = (
        ["torchrun", "--standalone", f"--nproc-per-node={cluster.processes}", "--no-python"]
        if cluster.processes > 1
        else []
    )
    line = words(cluster, config, dataset=dataset, model=model, run=run, launcher=launcher)
    container = {
        "name": "fit", "image": cluster.image, "command": line[:1], "args": line[1:],
        "env": _env(cluster), "resources": _resources(cluster), "volumeMounts": _mounts(cluster),
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip
    if cluster.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in cluster.secrets]
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": _volumes(cluster),
        **({"nodeSelector": cluster.node_selector} if cluster.node_selector else {}),
        **({"serviceAccountName": cluster.service_account} if cluster.service_account else {}),
    }  # fmt: skip
    labels = _labels()
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name_of(run), "namespace": cluster.namespace, "labels": labels},
        "spec": {
            "backoffLimit": cluster.backoff_limit,
            "activeDeadlineSeconds": cluster.active_deadline_seconds,
            "ttlSecondsAfterFinished": cluster.ttl_seconds,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }  # fmt: skip


def train_job(
    cluster: Cluster, config: FitConfig, *, dataset: str, model: str, run: str
) -> dict[str, Any]:
    """A trainer.kubeflow.org/v1alpha1 TrainJob; the claim comes in by a patch of the runtime's container `node`."""
    line = words(
        cluster, config, dataset=dataset, model=model, run=run, launcher=["torchrun", "--no-python"]
    )
    env = _env(cluster)
    if cluster.secrets:
        raise ConfigError(
            "secrets: a TrainJob takes none; name them in the runtime, or use --backend k8s-job"
        )
    pod: dict[str, Any] = {
        "volumes": _volumes(cluster),
        "containers": [{"name": "node", "volumeMounts": _mounts(cluster)}],
        **({"nodeSelector": cluster.node_selector} if cluster.node_selector else {}),
        **({"serviceAccountName": cluster.service_account} if cluster.service_account else {}),
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob",
        "metadata": {"name": name_of(run), "namespace": cluster.namespace, "labels": _labels()},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org", "kind": cluster.runtime_kind, "name": cluster.runtime,
            },
            "activeDeadlineSeconds": cluster.active_deadline_seconds,
            "trainer": {
                "image": cluster.image, "command": line[:1], "args": line[1:], "env": env,
                "numNodes": cluster.nodes, "numProcPerNode": cluster.processes,
                "resourcesPerNode": _resources(cluster),
            },
            "runtimePatches": [
                {
                    "manager": "graduate.dev/fit",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [
                        {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
                    ]}}},
                }
            ],
        },
    }  # fmt: skip


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": "graduate", "app.kubernetes.io/component": "training"}


def _env(cluster: Cluster) -> list[dict[str, str]]:
    return [
        {"name": "HOME", "value": "/tmp"},
        {"name": "HF_HOME", "value": f"{cluster.home}/models/hub"},
        {"name": "MPLCONFIGDIR", "value": "/tmp/matplotlib"},
    ]


def _resources(cluster: Cluster) -> dict[str, dict[str, str]]:
    limits = {"memory": cluster.memory}
    if cluster.gpus:
        limits["nvidia.com/gpu"] = str(cluster.gpus)
    return {"requests": {"cpu": cluster.cpu, "memory": cluster.memory}, "limits": limits}


def _mounts(cluster: Cluster) -> list[dict[str, str]]:
    return [
        {"name": "state", "mountPath": cluster.home},
        {"name": "tmp", "mountPath": "/tmp"},
    ]


def _volumes(cluster: Cluster) -> list[dict[str, Any]]:
    return [
        {"name": "state", "persistentVolumeClaim": {"claimName": cluster.claim}},
        {"name": "tmp", "emptyDir": {}},
    ]


def submit(manifest: dict[str, Any], kubectl: str = "kubectl") -> str:
    """Create the job in the cluster that kubectl speaks to; kubectl's own word about it.

    Raises:
        ConfigError: there is no kubectl, or it or the cluster refuses.
    """
    found = shutil.which(kubectl)
    if found is None:
        raise ConfigError(
            f"{kubectl}: not found; install it, or write the manifest with --render FILE"
        )
    try:
        ran = subprocess.run(
            [found, "create", "-f", "-"],
            input=json.dumps(manifest), capture_output=True, text=True, timeout=SUBMIT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as why:
        raise ConfigError(f"kubectl: no answer in {SUBMIT_SECONDS:.0f} s") from why
    if ran.returncode:
        raise ConfigError(f"kubectl: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout.strip()
