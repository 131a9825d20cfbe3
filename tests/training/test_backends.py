"""A fit as a job of a cluster: manifests that the schemas accept, the same configuration inside, refusals."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from training import backends, config
from training.backends import Cluster
from training.cli import app
from training.config import FitConfig
from training.errors import ConfigError

SETTINGS = FitConfig.model_validate(
    {"engine": "trl", "epochs": 2, "lora": {"rank": 32, "top_layers": None}, "target_mix_by": "weights"}
)  # fmt: skip
WHAT: dict[str, Any] = {"dataset": "tickets-0a1b", "model": "Qwen/Qwen3-4B", "run": "Tickets_1"}


@pytest.mark.parametrize(
    "cluster",
    [
        pytest.param(Cluster(), id="a CPU"),
        pytest.param(Cluster(processes=4, gpus=4, secrets=("hub",)), id="four GPUs"),
        pytest.param(
            Cluster(node_selector={"gpu": "h100"}, service_account="trainer", namespace="ml"), id="placed"
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_a_job_holds_against_the_strict_schemas(cluster: Cluster, version: str) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(backends.job(cluster, SETTINGS, **WHAT), version, strict=True)


def test_a_job_keeps_the_restricted_pod_standard() -> None:
    pod = backends.job(Cluster(), SETTINGS, **WHAT)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    container = pod["containers"][0]["securityContext"]
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert not container["allowPrivilegeEscalation"]


def test_a_train_job_holds_against_kubeflows_models() -> None:
    from kubeflow_trainer_api import models

    made = backends.train_job(Cluster(nodes=2, processes=8, gpus=8), SETTINGS, **WHAT)
    checked = json.loads(json.dumps(made))
    del checked["spec"]["trainer"]["resourcesPerNode"]  # these models have no quantities as text
    again = models.TrainerV1alpha1TrainJob.model_validate(checked)
    assert (
        json.loads(again.model_dump_json(by_alias=True, exclude_unset=True))["spec"]
        == checked["spec"]
    )


@pytest.mark.parametrize(
    ("made", "start"),
    [
        pytest.param(backends.job(Cluster(), SETTINGS, **WHAT)["spec"]["template"]["spec"]["containers"][0], ["graduate"], id="one process"),
        pytest.param(
            backends.job(Cluster(processes=2), SETTINGS, **WHAT)["spec"]["template"]["spec"]["containers"][0],
            ["torchrun", "--standalone", "--nproc-per-node=2", "--no-python", "graduate"], id="two processes",
        ),
        pytest.param(
            backends.train_job(Cluster(processes=2), SETTINGS, **WHAT)["spec"]["trainer"],
            ["torchrun", "--no-python", "graduate"], id="Kubeflow says how many",
        ),
    ],
)  # fmt: skip
def test_torchrun_starts_several_processes_and_never_accelerate(
    made: dict[str, Any], start: list[str]
) -> None:
    line = [*made["command"], *made["args"]]
    assert line[: len(start)] == start
    assert "accelerate" not in " ".join(line)
    assert "--dataset=/var/lib/graduate/datasets/tickets-0a1b" in line


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(FitConfig(), id="defaults"),
        pytest.param(SETTINGS, id="engine trl"),
        pytest.param(FitConfig(target_mix={"a b": 0.5, "c": 0.5}, max_rows_seen=7), id="a mix"),
    ],
)
def test_the_pod_reads_the_same_configuration(settings: FitConfig) -> None:
    assert config.load(None, backends.assignments(settings)) == settings


@pytest.mark.parametrize(
    ("make", "cluster", "message"),
    [
        pytest.param(backends.job, Cluster(nodes=2), "a Job has 1", id="nodes of a Job"),
        pytest.param(backends.train_job, Cluster(secrets=("s",)), "name them in the runtime", id="secrets"),
    ],
)  # fmt: skip
def test_what_a_kind_of_job_cannot_have_is_refused(
    make: Any, cluster: Cluster, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(cluster, SETTINGS, **WHAT)


def test_a_file_of_this_machine_does_not_travel() -> None:
    settings = config.load(None, ["explanations.file=why.jsonl"])
    with pytest.raises(ConfigError, match="only for --backend local"):
        backends.job(Cluster(), settings, **WHAT)


@pytest.mark.parametrize("run", ["Tickets_1", "x" * 90, "a.b/c", "-"])
def test_names_are_kubernetes_names(run: str) -> None:
    import re

    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", backends.name_of(run))
    assert len(backends.name_of(run)) <= 50


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["fit", *words])


def test_the_command_renders(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("namespace: ml\ngpus: 1\n")
    file = tmp_path / "job.yaml"
    ran = invoke(
        "--backend", "k8s-job", "--dataset", "tickets-0a1b", "--cluster", str(cluster), "--render", str(file),
        "--engine", "trl", "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    made = yaml.safe_load(file.read_text())
    assert made["metadata"]["namespace"] == "ml"
    assert 'engine="trl"' in made["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--backend", "slurm", "--dataset", "d"], "allowed: local, k8s-job", id="unknown"),
        pytest.param(["--backend", "trainjob"], "name the dataset", id="no dataset"),
        pytest.param(
            ["--backend", "trainjob", "--dataset", "d", "--start", "r"], "for --backend local", id="start"
        ),
    ],
)  # fmt: skip
def test_the_command_refuses(words: list[str], message: str) -> None:
    ran = invoke(*words)
    assert ran.exit_code == 2
    assert message in ran.output


def test_a_typo_in_the_cluster_file_is_named(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("namespaze: ml\n")
    ran = invoke("--backend", "k8s-job", "--dataset", "d", "--cluster", str(cluster))
    assert ran.exit_code == 2
    assert "did you mean 'namespace'" in ran.output.replace("\n", " ")


def test_kubectl_gets_the_manifest_and_its_no_is_passed_on(tmp_path: Path) -> None:
    script = tmp_path / "kubectl"
    script.write_text(f"#!/bin/sh\ncat > {tmp_path}/got.json\necho job.batch/x created\n")
    script.chmod(0o755)
    manifest = backends.job(Cluster(), SETTINGS, **WHAT)
    assert backends.submit(manifest, str(script)) == "job.batch/x created"
    assert json.loads((tmp_path / "got.json").read_text()) == manifest
    script.write_text("#!/bin/sh\necho forbidden >&2\nexit 1\n")
    with pytest.raises(ConfigError, match="forbidden"):
        backends.submit(manifest, str(script))
    with pytest.raises(ConfigError, match="not found"):
        backends.submit(manifest, os.devnull + "/kubectl")
