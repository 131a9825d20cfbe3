"""A home on this machine with two routes, and every service of Graduate over it, scraped by a Prometheus.

`tickets` has the stand-in as its student and lives through the story; `mail` has a real student server on a tiny random
model, so that the student server's own metrics are real too. A random model's answers are garbage, and counted as that.
"""

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.dashboards.prometheus import Prometheus
from benchmarks.dashboards.upstream import KINDS, Behaviour, Upstream
from graduate_up import Service, start_all

RULES = Path(__file__).parents[2] / "helm" / "graduate" / "files" / "rules" / "graduate.yaml"
LOOK_SECONDS = 0.2
PORTS = ("router", "admin", "student", "monitor", "upstream", "prometheus")
CANARY: dict[str, Any] = {
    "steps": ["20%", "60%", "100%"],
    "hold": "0s",
    "min_reviews": 1,
    "audit": "100%",
    "confidence": "80%",
    "gates": {
        "disagreement": {"max": "15%"},
        "guard_failures": {"max": "8%"},
        "errors": {"max": "30%"},
    },
}
"""Nobody reviews in the story, so the canary waits before its last step until the student breaks."""


class Place:
    """The home, its policy, and the processes."""

    def __init__(self, root: Path, *, tick_seconds: float) -> None:
        self.home = root / "home"
        self.home.mkdir(parents=True)
        self.policy = self.home / "policy.yaml"
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.behaviour = Behaviour()
        publish(root, self.home / "adapters")
        self.write_policy("dark_launch")
        self._upstream = Upstream(self.behaviour, self.ports["upstream"])
        self._services = self._made(root, tick_seconds)
        targets = {
            "graduate-router": "admin",
            "graduate-serving": "student",
            "graduate-monitor": "monitor",
        }
        addresses = {job: f"127.0.0.1:{self.ports[name]}" for job, name in targets.items()}
        self.prometheus = Prometheus(
            root / "prometheus", self.ports["prometheus"], addresses, RULES
        )  # fmt: skip

    def at(self, name: str) -> str:
        """Address of a service."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def write_policy(self, mode: str, broken: str = "") -> None:
        """Edit the policy: `tickets` in this mode; `broken` is written behind it."""
        route = {
            "match": {"model": "tickets"},
            "teacher": {"backend": "teacher", "model": "stand-in"},
            "student": _student("students", "tickets"),
            "mode": mode,
            "answer": {
                "kind": "json",
                "schema": {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": list(KINDS)}}},
                "compare": {"fields": ["kind"]},
            },
            "guard": {"rules": ["schema", "not_empty"]},
            "dark_launch": {"share": "100%", "noise": "20%"},
            "canary": CANARY,
        }  # fmt: skip
        mail = {
            "match": {"model": "mail"},
            "teacher": {"backend": "teacher", "model": "labels"},
            "student": _student("tiny", "mail"),
            "mode": "dark_launch",
            "answer": {"kind": "label", "labels": list(KINDS)},
            "guard": {"rules": ["label", "not_empty"]},
            "dark_launch": {"share": "100%", "max_per_minute": 40},
            "hybrid": {"cascade": {"min_confidence": "60%"}},  # what it would begin with
        }
        upstream = self.at("upstream")
        breaker = {"failures": 5, "window": "10s", "open_for": "3s"}
        backends = {
            "teacher": {"kind": "openai", "base_url": f"{upstream}/v1", "price": {"input": 2.5, "output": 10}},
            "students": {"kind": "lorax", "base_url": upstream, "breaker": breaker, "retries": {"attempts": 1}, "price": {"per_hour": 0.1}},
            "tiny": {"kind": "lorax", "base_url": self.at("student"), "price": {"per_hour": 0.05}},
        }  # fmt: skip
        policy = {
            "version": 1,
            "backends": backends,
            "routes": {"tickets": route, "mail": mail},
            "default": {"teacher": {"backend": "teacher"}},
        }
        text = yaml.safe_dump(policy) + broken
        fresh = self.policy.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.policy)

    def _made(self, root: Path, tick_seconds: float) -> list[Service]:
        home, policy, ports = str(self.home), str(self.policy), self.ports
        here = ["--home", home]
        arguments = {
            "student": ["serving", "serve", "--model", str(root / "model"), "--port", str(ports["student"]), *here],
            "router": [
                "router", "serve", "--policy", policy, "--port", str(ports["router"]),
                "--admin-port", str(ports["admin"]), *here,
            ],
            "monitor": [
                "monitor", "serve", "--policy", policy, "--port", str(ports["monitor"]),
                "--every", f"{tick_seconds:g}s", "--drift-rows", "150", *here,
            ],
        }  # fmt: skip
        doors = {"student": "student", "router": "admin", "monitor": "monitor"}
        return [
            Service(
                name, given, self.at(doors[name]), f"{self.at(doors[name])}/ready", root / f"{name}.log",
                environment={"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            )
            for name, given in arguments.items()
        ]  # fmt: skip

    def start(self) -> None:
        """Start everything, each ready before the next.

        Raises:
            NoPrometheus: Prometheus is not there.
            ServiceDied: one of Graduate's own ended by itself.
        """
        self.prometheus.start()
        self._upstream.start()
        start_all(self._services, 60)
        until(self.prometheus.is_ready, "Prometheus is ready", 30)

    def stop(self) -> None:
        """End everything."""
        for service in reversed(self._services):
            service.stop()
        self._upstream.stop()
        self.prometheus.stop()


def _student(backend: str, adapter: str) -> dict[str, Any]:
    prompt = "Mail: {input}\nKind:"
    return {
        "backend": backend,
        "adapter": adapter,
        "version": 1,
        "prompt": prompt,
        "max_tokens": 8,
    }


def publish(root: Path, registry: Path) -> None:
    """A tiny random model in `root/model`, and an adapter of it for either route."""
    from serving import base_model
    from serving.registry import ManifestFields, Registry
    from tests.tiny import random_adapter, tiny_model

    tiny_model(root / "model")
    base = base_model.load(str(root / "model"), root)
    adapter = random_adapter(root / "model", root / "adapter", 0, ["q_proj"])
    fields = ManifestFields(
        base_model=base.id,
        base_model_digest=base.digest,
        rank=4,
        alpha=16,
        target_modules=("q_proj",),
    )
    for name in ("tickets", "mail"):
        Registry(registry).publish(name, adapter, fields, {})


def free_ports(count: int) -> Sequence[int]:
    """Ports of this machine that nobody has now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def until(is_so: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait for it. Looks are counted, not time: a machine that stands still in between is no failure.

    Raises:
        TimeoutError: not so in time.
    """
    for _ in range(int(seconds / LOOK_SECONDS)):
        if is_so():
            return
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"not so within {seconds:g} s: {what}")
