"""A stand-in for a Kubernetes API server: enough for helm's install, upgrade, rollback, test and uninstall, and for
the monitor's patches. Objects are in memory, checked against Kubernetes' own schemas; loopback only.

It shows: order of hooks, release bookkeeping, schema validity, what an upgrade changes, and, with `accounts`, that Roles
allow what is asked. It does not show: scheduling, admission, networking, defaulting, controllers. A Pod succeeds at
once; a Job's end is what `run_job` says.
"""

import copy
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import kubernetes_validate

from tests.helm.kube_api import RESOURCES, Object


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
