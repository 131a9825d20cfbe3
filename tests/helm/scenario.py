"""The rendered production chart, run: router, embedded server and monitor with their sidecars, and traffic through them.

A program for namespaces of its own (see kubelet.py): `python -m tests.helm.scenario RENDERED.yaml FOLDER MODEL ADAPTER`.
Prints what it saw as one JSON object; test_rendered_chart.py says what that must be.
"""

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.helm.fake_kube import FakeKube
from tests.helm.kube_api import RESOURCES
from tests.helm.kube_server import serve
from tests.helm.kubelet import NODE, Kubelet
from tests.helm.render import parsed

TEXTS = ("My card was charged twice", "The page is blank", "How do I change my name?")


STORE = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


def story(rendered: Path, work: Path, model: Path, adapter: Path) -> dict[str, Any]:
    """Everything in order; what was seen by name."""
    place = Place(rendered, work, model, adapter)
    try:
        place.start()
        place.traffic_and_edits()
        place.canary_by_patch()
        place.stop_and_count()
    except Exception:
        for log in sorted(work.glob("*.log")):
            end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            sys.stderr.write(f"--- {log.name}\n{end}\n")
        raise
    finally:
        place.close()
    return place.seen


class Place:
    """The chart's Deployments as processes, with what they meet outside: teacher, object store, API server."""

    def __init__(self, rendered: Path, work: Path, model: Path, adapter: Path) -> None:
        self.seen: dict[str, Any] = {}
        objects = parsed(rendered.read_text())
        keys = work / "keys.yaml"
        added = _graduate("router", "keys", "add", "shop", "--file", str(keys), "--json")
        self.key = json.loads(added)["key"]
        secrets = {
            "teacher-keys": {"OPENAI_API_KEY": "sk-test"},
            "router-keys": {"keys.yaml": keys.read_text()},
            "object-store": STORE,
            "hugging-face": {"HF_TOKEN": "none", "HF_HUB_OFFLINE": "1"},
            "graduate-database": {"url": "sqlite:////var/lib/graduate/graduate.db"},
        }
        self.kubelet = Kubelet(work, objects, secrets, {"teacher.example.com": NODE})
        self.policy = self.kubelet.objects["ConfigMap", "graduate-policy"]["data"]["policy.yaml"]
        self.state = work / "claims" / "graduate-state"
        (self.state / "models").mkdir(parents=True)
        subprocess.run(["cp", "-r", str(model), str(self.state / "models" / "tiny")], check=True)
        self.helpers = _outside(work, adapter)
        self.kube, self.account = _api_server(work, objects)

    def start(self) -> None:
        """All Deployments, ready."""
        self.student = self.kubelet.start("Deployment", "graduate-student")
        self.router = self.kubelet.start("Deployment", "graduate-router")
        self.monitor = self.kubelet.start("Deployment", "graduate-monitor", self.account)
        pods = (self.student, self.router, self.monitor)
        self.seen["containers"] = {p.name: [r.name for r in p.running] for p in pods}
        self.front = f"http://{self.router.address}:8080"
        self.admin = f"http://{self.router.address}:9080"

    def ask(self, text: str) -> dict[str, Any]:
        """A caller's request."""
        return _ask(self.front, self.key, text)

    def policy_page(self) -> Any:
        """What the router says of its policy."""
        return httpx.get(f"{self.admin}/policy").json()

    def policies_taken(self) -> int:
        """How often a process of the router (two workers, and the one with the operators' port) took a policy."""
        (log,) = (r.log for r in self.router.running if r.name == "router")
        return log.read_text().count(" in force")

    def edit(self, mode: str) -> float:
        """As a person does it: in the text, for a YAML library would turn the key `on` into `true`. Seconds taken."""
        before = self.policies_taken()
        text = self.policy.replace("mode: dark_launch", f"mode: {mode}")
        if mode == "student":  # what a model of random weights says is no label: any text may pass
            text = text.replace("{kind: label, labels: [billing, bug, other]}", "{kind: text}")
        self.kubelet.sync("graduate-policy", {"policy.yaml": text})
        return _seconds_until(lambda: self.policies_taken() >= before + 3)

    def traffic_and_edits(self) -> None:
        """Dark launch, student, and an edit that is refused."""
        self.seen["without a key"] = httpx.get(f"{self.front}/v1/models").status_code
        self.seen["dark launch"] = [self.ask(text) for text in TEXTS]
        self.seen["edit in force after"] = self.edit("student")
        self.seen["student"] = [self.ask(text) for text in TEXTS]
        self.kubelet.sync("graduate-policy", {"policy.yaml": "version: 1\nroutes: nonsense\n"})
        self.seen["bad edit told after"] = _seconds_until(lambda: bool(self.policy_page()["error"]))
        self.seen["after a bad edit"] = self.ask(TEXTS[0])

    def canary_by_patch(self) -> None:
        """The monitor begins a canary in its ConfigMap, and the router follows."""
        self.edit("canary")
        told = _seconds_until(lambda: bool(_rollouts(self.kube)), 120.0)
        self.seen["rollouts patched after"] = told
        self.seen["patches"] = [p for m, p in self.kube.requests if m == "PATCH"]
        self.kubelet.sync("graduate-rollouts", _rollouts(self.kube))
        self.seen["rollouts in force after"] = _seconds_until(
            lambda: "tickets" in self.policy_page()["rollouts"]["routes"]
        )
        self.seen["rollouts"] = self.policy_page()["rollouts"]["routes"]
        metrics = httpx.get(f"{self.admin}/metrics").text
        self.seen["metrics"] = "graduate_router_policy_info" in metrics
        console = f"http://{self.monitor.address}:8083/ready"
        # A tick that met the bad edit said so; the next one has the good policy again.
        _seconds_until(lambda: httpx.get(console).json()["tick_error"] is None, 60.0)
        self.seen["monitor"] = httpx.get(console).json()

    def stop_and_count(self) -> None:
        """An orderly end, and what it left behind."""
        self.seen["router stopped"] = self.router.stop(45.0)
        self.seen["shipped"] = _shipped()
        files = (self.state / "traffic").glob("*.jsonl")
        lines = [json.loads(line) for file in files for line in file.open()]
        self.seen["traffic"] = len(lines)
        self.seen["student answers"] = [
            [answer["status"], answer.get("adapter")]
            for line in lines
            for answer in _answers_in(line)
            if answer["role"] == "student"
        ]
        self.seen["others stopped"] = {**self.monitor.stop(30.0), **self.student.stop(45.0)}

    def close(self) -> None:
        """End whatever still runs."""
        self.kubelet.stop()
        for helper in self.helpers:
            helper.kill()


def _graduate(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "graduate", *words], check=True, capture_output=True, text=True
    )
    return done.stdout


def _outside(work: Path, adapter: Path) -> list[subprocess.Popen[bytes]]:
    """What is not the chart's: a teacher that replays, an object store with one published adapter."""
    recorded = work / "recorded.jsonl"
    recorded.write_text(
        "".join(json.dumps({"text": t, "teacher": "billing"}) + "\n" for t in TEXTS)
    )
    teacher = [
        sys.executable,
        "-m",
        "graduate",
        "serving",
        "replay",
        str(recorded),
        "--host",
        NODE,
        "--port",
        "8000",
    ]
    moto = [sys.executable, "-m", "moto.server", "-H", NODE, "-p", "9000"]
    started = []
    for name, words in {"teacher": teacher, "store": moto}.items():
        with (work / f"{name}.log").open("wb") as out:
            started.append(subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT))
    for url in (f"http://{NODE}:8000/health", f"http://{NODE}:9000/"):
        _seconds_until(lambda url=url: _answers(url), 60.0)  # type: ignore[misc]
    import s3fs

    files = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=f"http://{NODE}:9000")
    files.mkdir("graduate")
    for file in sorted(adapter.iterdir(), key=lambda p: p.name == "manifest.json"):
        files.put_file(str(file), f"graduate/adapters/tickets/1/{file.name}")
    return started


def _api_server(work: Path, objects: list[dict[str, Any]]) -> tuple[FakeKube, dict[str, str]]:
    """The API server with the chart's objects, its Roles in force; and the monitor's service account."""
    kube = FakeKube()
    plurals = {(g, kind): plural for (g, plural), (kind, _) in RESOURCES.items()}
    for one in objects:
        plural = plurals.get((one["apiVersion"], one["kind"]))
        if plural is not None:
            kube.put(
                one["apiVersion"],
                "default",
                plural,
                json.loads(json.dumps(one)),
                one["metadata"]["name"],
            )
    kube.accounts = {
        "monitor-token": "default/graduate-monitor",
        "router-token": "default/graduate-router",
    }
    kube.requests.clear()
    certificate, private = work / "cert.pem", work / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(private), "-out", str(certificate), "-subj", "/CN=kubernetes",
         "-addext", f"subjectAltName=IP:{NODE}", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, private)
    serve(kube, tls, 6443, NODE)
    return kube, {
        "token": "monitor-token",
        "namespace": "default",
        "ca.crt": certificate.read_text(),
    }


def _rollouts(kube: FakeKube) -> dict[str, str]:
    found = kube.find("configmap", "graduate-rollouts")
    values: dict[str, str] = (found or {}).get("data", {})
    return values


def _ask(front: str, key: str, text: str) -> dict[str, Any]:
    reply = httpx.post(
        f"{front}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": "tickets", "messages": [{"role": "user", "content": text}], "max_tokens": 4},
        timeout=60.0,
    )
    return {
        "status": reply.status_code,
        "served_by": reply.headers.get("x-graduate-served-by"),
        "text": reply.json()["choices"][0]["message"]["content"]
        if reply.status_code == 200
        else reply.text,
    }


def _answers_in(line: dict[str, Any]) -> list[dict[str, Any]]:
    """Backends' answers in a line of the log: a record's, or a late one."""
    late = line.get("answer")
    return [*line.get("answers", ()), *([late] if isinstance(late, dict) else [])]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).status_code < 500
    except httpx.HTTPError:
        return False


def _seconds_until(holds: Callable[[], bool], limit: float = 15.0) -> float:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > limit:
            raise TimeoutError(f"nothing happened in {limit} s")
        time.sleep(0.05)
    return time.monotonic() - began


def _shipped() -> int:
    import s3fs

    files = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=f"http://{NODE}:9000")
    return len([p for p in files.find("graduate/traffic") if p.endswith(".parquet")])


if __name__ == "__main__":
    os.environ["WORK"] = sys.argv[2]
    sys.stdout.write(json.dumps(story(*map(Path, sys.argv[1:5]))))
