"""What the stand-in for a Kubernetes API server says about itself: the kinds that it serves, and its discovery."""

import re
from typing import Any

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


def resource_list(group: str) -> Object:
    """Kinds of a group and version, with their verbs."""
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


def discovery(path: str, version: str) -> Object | None:
    """Answers about the API itself."""

    def api_path(group: str) -> str:
        return ("api/" if group == "v1" else "apis/") + group

    if path == "/version":
        major, minor = version.split(".")
        return {"major": major, "minor": minor, "gitVersion": f"v{version}.0"}
    if path == "/api":
        return {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for group in (g for g in KINDS if "/" in g):
            served = {"groupVersion": group, "version": group.split("/")[1]}
            groups.append(
                {
                    "name": group.split("/")[0],
                    "versions": [served],
                    "preferredVersion": served,
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
