"""What a platform team asks of a chart's objects, a function a rule; each yields what is wrong, with its place."""

import re
from collections.abc import Callable, Iterator, Sequence

from tests.helm.render import Object, containers, of_kind, pods, port_names, selects

ENGINE = re.compile(r"(lorax|vllm)-")
"""Components whose image runs as root: the one exception from the restricted standard."""
RUNS_TO_AN_END = ("Job/", "CronJob/", "Pod/", "TrainingRuntime/")


def probes(objects: Sequence[Object]) -> Iterator[str]:
    """Whatever goes on running says whether it lives and whether it may have traffic."""
    for where, pod in pods(objects):
        for one, role in containers(pod):
            if role == "init" or (role == "main" and where.startswith(RUNS_TO_AN_END)):
                continue
            for probe in ("livenessProbe", "readinessProbe"):
                if probe not in one:
                    yield f"{where}: {one['name']} has no {probe}"


def resources(objects: Sequence[Object]) -> Iterator[str]:
    """CPU and memory are asked for, memory is limited."""
    for where, pod in pods(objects):
        for one, _ in containers(pod):
            found = one.get("resources", {})
            if not {"cpu", "memory"} <= found.get("requests", {}).keys():
                yield f"{where}: {one['name']} asks for no cpu or memory"
            if "memory" not in found.get("limits", {}):
                yield f"{where}: {one['name']} has no memory limit"


def restricted(objects: Sequence[Object]) -> Iterator[str]:
    """The restricted Pod Security Standard, and a read-only root; GPU engines are excused from non-root and read-only."""
    for where, pod in pods(objects):
        spec = pod["spec"]
        context = spec.get("securityContext", {})
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{where}: {key}"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: seccomp profile"
        if not context.get("runAsNonRoot") and not ENGINE.match(component):
            yield f"{where}: runAsNonRoot"
        for volume in spec.get("volumes", ()):
            if "hostPath" in volume:
                yield f"{where}: hostPath {volume['name']}"
        for one, role in containers(pod):
            mine = one.get("securityContext", {})
            if mine.get("allowPrivilegeEscalation") is not False or mine.get("privileged"):
                yield f"{where}: {one['name']} may escalate"
            if mine.get("capabilities", {}).get("drop") != ["ALL"] or mine["capabilities"].get(
                "add"
            ):
                yield f"{where}: {one['name']} keeps capabilities"
            excused = ENGINE.match(component) and role == "main"
            if not mine.get("readOnlyRootFilesystem") and not excused:
                yield f"{where}: {one['name']} can write its root"


def tokens(objects: Sequence[Object]) -> Iterator[str]:
    """Only the monitor talks to the API server."""
    for where, pod in pods(objects):
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        if pod["spec"].get("automountServiceAccountToken") is not (component == "monitor"):
            yield f"{where}: automountServiceAccountToken"
    for name, account in of_kind(objects, "ServiceAccount").items():
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount/{name}: automountServiceAccountToken"
    accounts = of_kind(objects, "ServiceAccount").keys() | {"default"}
    for where, pod in pods(objects):
        if pod["spec"]["serviceAccountName"] not in accounts:
            yield f"{where}: no service account {pod['spec']['serviceAccountName']}"


def services(objects: Sequence[Object]) -> Iterator[str]:
    """Every Service finds pods, and its target ports are theirs."""
    for name, service in of_kind(objects, "Service").items():
        found = [
            (where, pod)
            for where, pod in pods(objects)
            if selects(service["spec"]["selector"], pod["metadata"]["labels"])
            and not where.startswith("Pod/")
        ]
        if len(found) != 1:
            yield f"Service/{name}: finds {[w for w, _ in found]}"
            continue
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in port_names(found[0][1]):
                yield f"Service/{name}: {found[0][0]} has no port {port['targetPort']}"


def ports(objects: Sequence[Object]) -> Iterator[str]:
    """Probes and the command's own flags agree with the ports that are declared."""
    for where, pod in pods(objects):
        names = port_names(pod)
        for one, _ in containers(pod):
            own = {p["name"]: p["containerPort"] for p in one.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                get = one.get(probe, {}).get("httpGet")
                if get and get["port"] not in own:
                    yield f"{where}: {one['name']}: {probe} asks {get['port']}"
            flags = [
                *re.findall(r"--(?:admin-)?port[ =](\d+)", " ".join(map(str, one.get("args", ()))))
            ]
            if (
                own
                and "--port" in str(one.get("args"))
                and sorted(map(int, flags)) != sorted(own.values())
            ):
                yield f"{where}: {one['name']}: flags say {flags}, ports are {own}"
        if len(set(names.values())) != len(names):
            yield f"{where}: a port twice: {names}"


def exposure(objects: Sequence[Object]) -> Iterator[str]:
    """Ingress and HTTPRoute name a Service and a port of it."""
    known = {
        n: {p["name"]: p["port"] for p in s["spec"]["ports"]}
        for n, s in of_kind(objects, "Service").items()
    }
    for name, ingress in of_kind(objects, "Ingress").items():
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                target = path["backend"]["service"]
                if target["port"]["name"] not in known.get(target["name"], {}):
                    yield f"Ingress/{name}: {target}"
    for name, route in of_kind(objects, "HTTPRoute").items():
        for target in route["spec"]["rules"][0]["backendRefs"]:
            if target["port"] not in known.get(target["name"], {}).values():
                yield f"HTTPRoute/{name}: {target}"


def mounts(objects: Sequence[Object]) -> Iterator[str]:
    """Every mount has its volume, every volume its ConfigMap, claim or known Secret, and a key that is there."""
    maps, claims = of_kind(objects, "ConfigMap"), of_kind(objects, "PersistentVolumeClaim")
    templates = {
        f"{kind['metadata']['name']}/{t['metadata']['name']}"
        for kind in of_kind(objects, "StatefulSet").values()
        for t in kind["spec"].get("volumeClaimTemplates", ())
    }
    for where, pod in pods(objects):
        volumes = {v["name"]: v for v in pod["spec"].get("volumes", ())}
        used = set()
        for one, _ in containers(pod):
            seen = set()
            for mount in one.get("volumeMounts", ()):
                used.add(mount["name"])
                if mount["mountPath"] in seen:
                    yield f"{where}: {one['name']}: two mounts at {mount['mountPath']}"
                seen.add(mount["mountPath"])
                of_template = f"{where.partition('/')[2]}/{mount['name']}" in templates
                if mount["name"] not in volumes and not of_template:
                    yield f"{where}: {one['name']}: no volume {mount['name']}"
                volume = volumes.get(mount["name"], {})
                if "subPath" in mount and ("configMap" in volume or "projected" in volume):
                    yield f"{where}: {one['name']}: a subPath of a ConfigMap never changes"
        for name, volume in volumes.items():
            if name not in used:
                yield f"{where}: volume {name} is mounted nowhere"
            if (claim := volume.get("persistentVolumeClaim")) and claim["claimName"] not in claims:
                yield f"{where}: no claim {claim['claimName']}"
            sources = [volume, *volume.get("projected", {}).get("sources", ())]
            for source in (s["configMap"] for s in sources if "configMap" in s):
                found = maps.get(source["name"])
                if found is None:
                    yield f"{where}: no ConfigMap {source['name']}"
                elif (
                    missing := {i["key"] for i in source.get("items", ())}
                    - found.get("data", {}).keys()
                ):
                    yield f"{where}: ConfigMap {source['name']} has no {missing}"


def images(objects: Sequence[Object]) -> Iterator[str]:
    """A tag that stays, or a digest."""
    for where, pod in pods(objects):
        for one, _ in containers(pod):
            tag = one["image"].rpartition("/")[2]
            if not re.search(r"[:@]", tag) or tag.endswith(":latest"):
                yield f"{where}: image {one['image']}"


def labels(objects: Sequence[Object]) -> Iterator[str]:
    """The recommended labels and a namespace on everything; the chart's version in no selector; no object twice."""
    seen = set()
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        if where in seen:
            yield f"{where}: twice"
        seen.add(where)
        missing = {"name", "instance", "version", "managed-by", "component"} - {
            key.removeprefix("app.kubernetes.io/") for key in one["metadata"].get("labels", ())
        }
        if missing or one["metadata"].get("namespace") is None:
            yield f"{where}: no {missing or 'namespace'}"
        selector = one.get("spec", {}).get("selector", {})
        if "helm.sh/chart" in str(selector) or "app.kubernetes.io/version" in str(selector):
            yield f"{where}: its selector changes with the version"
        if len(one["metadata"]["name"]) > 63:
            yield f"{where}: the name is too long"


def network(objects: Sequence[Object]) -> Iterator[str]:
    """When there are policies, every pod that talks has one of its own, and its named ports are the pod's."""
    policies = of_kind(objects, "NetworkPolicy")
    if not policies:
        return
    for where, pod in pods(objects):
        chosen = {
            n: p
            for n, p in policies.items()
            if selects(p["spec"]["podSelector"]["matchLabels"], pod["metadata"]["labels"])
        }
        if not any(n.endswith("-default-deny") for n in chosen):
            yield f"{where}: nothing denies"
        if len(chosen) < 2 and "policy-check" not in where:
            yield f"{where}: no policy of its own"
        names = port_names(pod)
        for name, policy in chosen.items():
            for rule in policy["spec"].get("ingress", ()):
                for port in rule["ports"]:
                    if port["port"] not in names and port["port"] not in names.values():
                        yield f"{where}: NetworkPolicy/{name} opens {port['port']}"


def scaling(objects: Sequence[Object]) -> Iterator[str]:
    """An autoscaler's target has no replicas of its own; a disruption budget only where more than one pod runs."""
    workloads = {**of_kind(objects, "Deployment"), **of_kind(objects, "StatefulSet")}
    scaled = {}
    for name, autoscaler in of_kind(objects, "HorizontalPodAutoscaler").items():
        target = autoscaler["spec"]["scaleTargetRef"]["name"]
        scaled[target] = autoscaler["spec"]["minReplicas"]
        if "replicas" in workloads[target]["spec"]:
            yield f"HorizontalPodAutoscaler/{name}: {target} has replicas of its own"
    for name, budget in of_kind(objects, "PodDisruptionBudget").items():
        found = [
            n
            for n, w in workloads.items()
            if selects(
                budget["spec"]["selector"]["matchLabels"],
                w["spec"]["template"]["metadata"]["labels"],
            )
        ]
        count = (
            scaled.get(found[0], workloads[found[0]]["spec"].get("replicas"))
            if len(found) == 1
            else 0
        )
        if count < 2:
            yield f"PodDisruptionBudget/{name}: {found} with {count} pods"


def nothing_secret(objects: Sequence[Object]) -> Iterator[str]:
    """The chart makes no Secret, and no environment holds a password."""
    for name in of_kind(objects, "Secret"):
        yield f"Secret/{name}"
    for where, pod in pods(objects):
        for one, _ in containers(pod):
            for variable in one.get("env", ()):
                if (
                    re.search(r"(?i)password|secret|token|_key$", variable["name"])
                    and "value" in variable
                ):
                    yield f"{where}: {one['name']}: {variable['name']} has a value"


RULES: tuple[Callable[[Sequence[Object]], Iterator[str]], ...] = (
    probes, resources, restricted, tokens, services, ports, exposure, mounts, images, labels, network, scaling, nothing_secret,
)  # fmt: skip
