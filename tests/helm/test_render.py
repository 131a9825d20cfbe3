"""The chart, rendered by real helm: every example and a matrix of switches against schemas and our own rules."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import typer
import yaml

from tests.helm.render import (
    CHART,
    EXAMPLES,
    Helm,
    HelmFailed,
    Object,
    containers,
    of_kind,
    parsed,
    pods,
)
from tests.helm.rules import RULES

pytestmark = pytest.mark.slow

LOWEST, HIGHEST = "1.29", "1.37"
CUSTOM = {
    "ServiceMonitor",
    "PodMonitor",
    "PrometheusRule",
    "HTTPRoute",
    "TrainJob",
    "TrainingRuntime",
}
TRAINING = ("training.enabled=true", "training.route=tickets")
SWITCHES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "everything off": tuple(f"{c}.enabled=false" for c in ("router", "embedded", "monitor", "networkPolicy", "tests")),
    "router alone": ("embedded.enabled=false", "monitor.enabled=false", "state.claim.create=false"),
    "no shared claim": ("state.claim.create=false",),
    "a claim of somebody else's": ("state.claim.existingClaim=mine",),
    "no policies of the network": ("networkPolicy.enabled=false",),
    "several pods": ("router.replicas=3", "embedded.replicas=2", "router.workers=4"),
    "autoscaled by requests in flight": ("router.autoscaling.enabled=true", "router.autoscaling.targetCPU=0", "router.autoscaling.targetInFlight=50"),
    "keys and an Ingress": ("secrets.routerKeys=keys", "router.open=false", "router.ingress.enabled=true", "router.ingress.tls[0].secretName=tls"),
    "keys and a Gateway": ("secrets.routerKeys=keys", "router.httpRoute.enabled=true", "router.httpRoute.parentRefs[0].name=public"),
    "registry in a store": ("state.registryUrl=s3://bucket/adapters", "secrets.objectStore=store", "state.s3Endpoint=https://s3.example.com"),
    "ship": ("router.ship.enabled=true", "router.ship.to=s3://bucket/traffic"),
    "LoRAX": ("lorax.enabled=true", "lorax.replicas=2", "embedded.enabled=false"),
    "vLLM from a store": ("vllm.enabled=true", "embedded.enabled=false", "state.registryUrl=s3://bucket/adapters"),
    "engines without volumes": ("lorax.enabled=true", "lorax.persistence.enabled=false", "vllm.enabled=true"),
    "training by schedule": TRAINING,
    "training once, into a store": (*TRAINING, "training.mode=job", "state.registryUrl=s3://bucket/adapters", "training.processes=2"),
    "training without publishing": (*TRAINING, "training.publish=false", "training.mode=job"),
    "training by Kubeflow": (*TRAINING, "training.mode=trainjob", "state.registryUrl=s3://bucket/adapters", "secrets.objectStore=store"),
    "PostgreSQL for a trial": ("postgresql.enabled=true", "postgresql.existingSecret=pg", *TRAINING),
    "external database": ("monitor.database.existingSecret=db", "monitor.persistence.enabled=false"),
    "observed": ("serviceMonitor.enabled=true", "serviceMonitor.podMonitor=true", "prometheusRule.enabled=true", "dashboards.enabled=true", "lorax.enabled=true"),
    "names": ("fullnameOverride=gr", "commonLabels.team=ml", "commonAnnotations.note=x", "nameOverride=other"),
    "monitor reads shipped logs": ("monitor.logs[0]=s3://bucket/traffic", "secrets.objectStore=store", "state.s3Endpoint=http://minio:9000", "networkPolicy.enabled=true"),
    "upgrade check of difficulty models": ("policy.check.difficultyModels=true",),
    "extras": ("router.pod.extraEnv[0].name=A", "router.pod.extraEnv[0].value=b", "router.pod.priorityClassName=high", "embedded.pod.nodeSelector.disk=fast"),
}  # fmt: skip
"""What is switched, as `--set`."""


def invalid(objects: list[Object], version: str) -> list[str]:
    """What Kubernetes' own schemas refuse, unknown fields and unknown kinds too."""
    wrong = []
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as why:
            wrong.append(f"{where}: {'.'.join(map(str, why.path))}: {why.message}")
        except kubernetes_validate.SchemaNotFoundError:
            if one["kind"] not in CUSTOM:
                wrong.append(f"{where}: no such kind in Kubernetes {version}")
    return wrong


def broken(objects: list[Object]) -> list[str]:
    """What our own rules say."""
    return list(itertools.chain.from_iterable(rule(objects) for rule in RULES))


@pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES.keys())
def test_switches_render_to_valid_objects_that_keep_the_rules(
    helm: Helm, settings: tuple[str, ...]
) -> None:
    objects = helm.template(*settings)
    known = [r for r in broken(objects) if "no claim mine" not in r]
    assert known == []
    assert invalid(objects, LOWEST) == []
    assert invalid(objects, HIGHEST) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_linted_valid_and_keep_the_rules(each_helm: Helm, example: Path) -> None:
    each_helm.run("lint", "--strict", CHART, "--values", example)
    objects = each_helm.template(values=[example])
    assert broken(objects) == []
    assert invalid(objects, LOWEST) == []
    assert invalid(objects, HIGHEST) == []


def test_both_helms_render_the_same_objects(
    binaries: dict[str, Path], helm_environment: dict[str, str]
) -> None:
    for example in EXAMPLES:
        made = [
            Helm(path, helm_environment).template(values=[example]) for path in binaries.values()
        ]
        assert made[0] == made[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["router.replicaCount=2"], "replicaCount"),
        (["router.replicas=two"], "replicas"),
        (["monitor.pod.nodeselector.a=b"], "nodeselector"),
        (["lorax.models[0].name=Big_Model", "lorax.models[0].model=x"], "name"),
        (["router.image.digest=sha256:12"], "digest"),
        (["state.registryUrl=bucket/adapters"], "registryUrl"),
        (["router.open=false"], "secrets.routerKeys"),
        (["router.ingress.enabled=true"], "spend the teacher's money"),
        (["postgresql.enabled=true"], "no default one"),
        (["training.enabled=true"], "training.route"),
        (["router.ship.enabled=true"], "router.ship.to"),
        (
            [
                "postgresql.enabled=true",
                "postgresql.existingSecret=a",
                "monitor.database.existingSecret=b",
            ],
            "choose one",
        ),
        (
            ["router.autoscaling.enabled=true", "router.autoscaling.targetCPU=0"],
            "targetCPU or targetInFlight",
        ),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_bad_values_are_refused_with_their_name(
    each_helm: Helm, settings: list[str], said: str
) -> None:
    with pytest.raises(HelmFailed, match=said):
        each_helm.template(*settings)


def test_a_policy_edit_restarts_nothing(helm: Helm, tmp_path: Path) -> None:
    edited = tmp_path / "policy.yaml"
    edited.write_text("version: 1\n# another one\n")
    before = helm.template()
    after = [o for o in before if o["kind"] != "ConfigMap"]
    text = helm.run(
        "template",
        "graduate",
        CHART,
        "--namespace",
        "default",
        "--set-file",
        f"policy.text={edited}",
    )
    made = parsed(text)
    assert (
        of_kind(made, "ConfigMap")["graduate-policy"]
        != of_kind(before, "ConfigMap")["graduate-policy"]
    )
    assert [o for o in made if o["kind"] != "ConfigMap"] == after


def test_every_launcher_flag_can_be_given(helm: Helm, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        "lorax: {enabled: true, models: [{name: m, model: org/m, flags: {quantize: awq, eager: true, json-output: false,"
        " max-input-length: 100000000, preloaded-adapter-ids: [a/1, b/2], cuda-memory-fraction: 0.9}}]}"
    )
    engine = of_kind(helm.template(values=[values]), "StatefulSet")["graduate-lorax-m"]
    args = " ".join(engine["spec"]["template"]["spec"]["containers"][0]["args"])
    for wanted in (
        "--model-id org/m --port 8080", "--quantize awq", "--eager", "--max-input-length 100000000",
        "--preloaded-adapter-ids a/1 --preloaded-adapter-ids b/2", "--cuda-memory-fraction 0.9", "--adapter-source local",
    ):  # fmt: skip
        assert wanted in args
    assert "--json-output" not in args


def test_the_monitor_may_do_two_things_to_one_object(helm: Helm) -> None:
    objects = helm.template(values=[CHART / "ci" / "production.yaml"])
    roles = of_kind(objects, "Role")
    assert [r["rules"] for r in roles.values()] == [
        [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": ["graduate-rollouts"],
                "verbs": ["get", "patch"],
            }
        ]
    ]
    assert not of_kind(objects, "ClusterRole")
    assert not {o["kind"] for o in objects} & {"ClusterRoleBinding", "Namespace"}


def test_training_runs_its_steps_in_order(helm: Helm) -> None:
    settings = (
        *TRAINING,
        "training.mode=job",
        "state.registryUrl=s3://bucket/adapters",
        "training.set.epochs=4",
    )
    (job,) = [
        o
        for o in helm.template(*settings)
        if o["kind"] == "Job" and "training" in o["metadata"]["name"]
    ]
    spec = job["spec"]["template"]["spec"]
    names = [c["name"] for c in (*spec["initContainers"], *spec["containers"])]
    assert names == ["adapter-sync", "build", "fit", "evaluate", "publish", "push"]
    fit = spec["initContainers"][2]
    assert fit["command"] == ["graduate"]
    assert "--set=epochs=4" in fit["args"]


def test_dashboards_and_rules_are_those_in_the_chart(helm: Helm) -> None:
    objects = helm.template("dashboards.enabled=true", "prometheusRule.enabled=true")
    boards = [o for n, o in of_kind(objects, "ConfigMap").items() if "-dashboard-" in n]
    files = sorted((CHART / "files" / "dashboards").glob("*.json"))
    assert sorted(next(iter(b["data"])) for b in boards) == [f.name for f in files]
    for board in boards:
        ((name, text),) = board["data"].items()
        assert text.strip() == (CHART / "files" / "dashboards" / name).read_text().strip()
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(of_kind(objects, "PrometheusRule")) == len(
        list((CHART / "files" / "rules").glob("*.yaml"))
    )


def test_every_command_takes_the_options_that_the_chart_gives_it(helm: Helm) -> None:
    import graduate

    root = typer.main.get_command(graduate.app)
    seen = set()
    for settings in ((), *SWITCHES.values()):
        for where, pod in pods(helm.template(*settings)):
            for one, _ in containers(pod):
                words = [*one.get("command", ()), *map(str, one.get("args", ()))]
                if "graduate" not in words:
                    continue
                words = [w.replace("$(RUN)", "job-1") for w in words[words.index("graduate") + 1 :]]
                command: Any = root
                while hasattr(command, "commands"):
                    assert words[0] in command.commands, f"{where}: {words}"
                    command, words = command.commands[words[0]], words[1:]
                seen.add(command.name)
                command.make_context(
                    command.name, list(words)
                )  # refuses an option or a value that it does not know
    assert {"serve", "check", "ship", "build", "fit", "evaluate", "publish"} <= seen


def test_rendered_rules_are_the_file_and_hold_for_promtool(helm: Helm, tmp_path: Path) -> None:
    rendered = of_kind(helm.template("prometheusRule.enabled=true"), "PrometheusRule")
    assert rendered
    for name, rule in rendered.items():
        file = CHART / "files" / "rules" / f"{name.removeprefix('graduate-')}.yaml"
        assert rule["spec"] == yaml.safe_load(file.read_text())
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.fail("promtool is not here: apt-get install prometheus")
    for name, rule in rendered.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(rule["spec"]))
        done = subprocess.run(
            [promtool, "check", "rules", tmp_path / f"{name}.yaml"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout


def test_pods_of_one_component_are_selected_by_nothing_else(helm: Helm) -> None:
    objects = helm.template(values=[CHART / "ci" / "production.yaml"])
    found: dict[str, list[str]] = {}
    for where, pod in pods(objects):
        found.setdefault(pod["metadata"]["labels"]["app.kubernetes.io/component"], []).append(where)
    assert {c: w for c, w in found.items() if len(w) > 1} == {}


def custom_models() -> dict[str, Any]:
    """Models of the Prometheus operator's custom resources."""
    from cloudcoil.models.prometheus_operator import v1

    return {
        "ServiceMonitor": v1.ServiceMonitor,
        "PodMonitor": v1.PodMonitor,
        "PrometheusRule": v1.PrometheusRule,
    }


def test_monitors_and_rules_hold_against_the_operators_models(helm: Helm) -> None:
    objects = helm.template(*SWITCHES["observed"])
    models, seen = custom_models(), set()
    for one in objects:
        if model := models.get(one["kind"]):
            seen.add(one["kind"])
            again = model.model_validate(one).model_dump(
                by_alias=True, exclude_unset=True, mode="json"
            )
            assert again["spec"] == one["spec"]  # a misspelt field would be dropped in silence
    assert {"ServiceMonitor", "PodMonitor"} <= seen


def test_a_monitor_that_reads_a_bucket_is_given_its_keys_and_its_way_out(helm: Helm) -> None:
    objects = helm.template(*SWITCHES["monitor reads shipped logs"])
    deployment = next(
        o for n, o in of_kind(objects, "Deployment").items() if n.endswith("-monitor")
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--log=s3://bucket/traffic" in container["args"]
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert {"name": "AWS_ENDPOINT_URL", "value": "http://minio:9000"} in container["env"]
    policy = next(o for n, o in of_kind(objects, "NetworkPolicy").items() if n.endswith("-monitor"))
    opened = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", [])}
    assert (
        set(yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]["storePorts"])
        <= opened
    )


def test_the_http_route_holds_against_the_gateway_apis_own_schema(helm: Helm) -> None:
    schema = json.loads((Path(__file__).parent / "httproute-v1.schema.json").read_text())
    checks = jsonschema_rs.validator_for(schema)
    objects = helm.template(values=[CHART / "ci" / "production.yaml"])
    ((name, route),) = of_kind(objects, "HTTPRoute").items()
    assert [f"{name}: {e.message}" for e in checks.iter_errors(route["spec"])] == []
    misspelt = {**route["spec"], "hostnmaes": ["graduate.example.com"]}
    assert not checks.is_valid(misspelt)


def test_kubeflows_objects_hold_against_its_models(helm: Helm) -> None:
    from kubeflow_trainer_api import models

    objects = helm.template(*SWITCHES["training by Kubeflow"], "training.processes=2")
    (job,), (runtime,) = (
        list(of_kind(objects, kind).values()) for kind in ("TrainJob", "TrainingRuntime")
    )
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    ((_, pod),) = pods([runtime])
    assert (
        invalid(
            [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]}],
            HIGHEST,
        )
        == []
    )
    node = pod["spec"]["containers"][0]
    assert node["name"] == "node"
    assert "torchrun --no-python graduate train fit" in node["args"][1]
    assert "${RUN}" in node["args"][1]
    for one, _ in containers(pod):  # these models have no quantities written as text
        del one["resources"]
    for one, model in (
        (job, models.TrainerV1alpha1TrainJob),
        (runtime, models.TrainerV1alpha1TrainingRuntime),
    ):
        again = json.loads(
            model.model_validate(one).model_dump_json(by_alias=True, exclude_unset=True)
        )
        assert again["spec"] == one["spec"]
