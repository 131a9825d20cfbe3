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
from tests.helm.kubelet import NODE, Kubelet
from tests.helm.render import parsed

TEXTS = ("My card was charged twice", "The page is blank", "How do I change my name?")


def story(rendered: Path, work: Path, model: Path, adapter: Path) -> dict[str, Any]:
    """Everything in order; what was seen by name."""
    objects = parsed(rendered.read_text())
    seen: dict[str, Any] = {}
    store = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    keys = work / "keys.yaml"
    key = json.loads(_graduate("router", "keys", "add", "shop", "--file", str(keys), "--json"))[
        "key"
    ]
    secrets = {
        "teacher-keys": {"OPENAI_API_KEY": "sk-test"},
        "router-keys": {"keys.yaml": keys.read_text()},
        "object-store": store,
        "hugging-face": {"HF_TOKEN": "none", "HF_HUB_OFFLINE": "1"},
        "graduate-database": {"url": "sqlite:////var/lib/graduate/graduate.db"},
    }
    kubelet = Kubelet(work, objects, secrets, {"teacher.example.com": NODE})
    state = work / "claims" / "graduate-state"
    (state / "models").mkdir(parents=True)
    subprocess.run(["cp", "-r", str(model), str(state / "models" / "tiny")], check=True)
    helpers = _outside(work, store, adapter)
    kube, account = _api_server(work, objects)
    try:
        student = kubelet.start("Deployment", "graduate-student")
        router = kubelet.start("Deployment", "graduate-router")
        monitor = kubelet.start("Deployment", "graduate-monitor", account)
        seen["containers"] = {
            p.name: [r.name for r in p.running] for p in (student, router, monitor)
        }
        front, admin = f"http://{router.address}:8080", f"http://{router.address}:9080"
        seen["without a key"] = httpx.get(f"{front}/v1/models").status_code
        seen["dark launch"] = [_ask(front, key, text) for text in TEXTS]
        policy = kubelet.objects["ConfigMap", "graduate-policy"]["data"]["policy.yaml"]

        def said() -> int:
            """How often a process of the router (two workers, and the one with the operators' port) took a policy."""
            (log,) = (r.log for r in router.running if r.name == "router")
            return log.read_text().count(" in force")

        def edit(mode: str) -> float:
            """As a person does it: in the text, for a YAML library would turn the key `on` into `true`."""
            before = said()
            text = policy.replace("mode: dark_launch", f"mode: {mode}")
            if (
                mode == "student"
            ):  # what a model of random weights says is no label: any text may pass
                text = text.replace("{kind: label, labels: [billing, bug, other]}", "{kind: text}")
            kubelet.sync("graduate-policy", {"policy.yaml": text})
            return _seconds_until(lambda: said() >= before + 3)

        seen["edit in force after"] = edit("student")
        seen["student"] = [_ask(front, key, text) for text in TEXTS]
        kubelet.sync("graduate-policy", {"policy.yaml": "version: 1\nroutes: nonsense\n"})
        seen["bad edit told after"] = _seconds_until(
            lambda: bool(httpx.get(f"{admin}/policy").json()["error"])
        )
        seen["after a bad edit"] = _ask(front, key, TEXTS[0])
        edit("canary")
        seen["rollouts patched after"] = _seconds_until(lambda: bool(_rollouts(kube)), 120.0)
        seen["patches"] = [p for m, p in kube.requests if m == "PATCH"]
        kubelet.sync("graduate-rollouts", _rollouts(kube))
        wanted = "tickets"
        seen["rollouts in force after"] = _seconds_until(
            lambda: wanted in httpx.get(f"{admin}/policy").json()["rollouts"]["routes"]
        )
        seen["rollouts"] = httpx.get(f"{admin}/policy").json()["rollouts"]["routes"]
        seen["metrics"] = "graduate_router_policy_info" in httpx.get(f"{admin}/metrics").text
        console = f"http://{monitor.address}:8083/ready"
        # A tick that met the bad edit said so; the next one has the good policy again.
        _seconds_until(lambda: httpx.get(console).json()["tick_error"] is None, 60.0)
        seen["monitor"] = httpx.get(console).json()
        seen["router stopped"] = router.stop(45.0)
        seen["shipped"] = _shipped(store)
        lines = [json.loads(x) for f in (state / "traffic").glob("*.jsonl") for x in f.open()]
        seen["traffic"] = len(lines)
        seen["student answers"] = [
            [a["status"], a.get("adapter")]
            for x in lines
            for a in _answers_in(x)
            if a["role"] == "student"
        ]
        seen["others stopped"] = {**monitor.stop(30.0), **student.stop(45.0)}
    except Exception:
        for log in sorted(work.glob("*.log")):
            sys.stderr.write(
                f"--- {log.name}\n"
                + "\n".join(log.read_text(errors="replace").splitlines()[-30:])
                + "\n"
            )
        raise
    finally:
        kubelet.stop()
        for helper in helpers:
            helper.kill()
    return seen


def _graduate(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "graduate", *words], check=True, capture_output=True, text=True
    )
    return done.stdout


def _outside(work: Path, store: dict[str, str], adapter: Path) -> list[subprocess.Popen[bytes]]:
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
    from tests.helm.fake_kube import RESOURCES

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
    kube.serve(tls, 6443, NODE)
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


def _shipped(store: dict[str, str]) -> int:
    import s3fs

    files = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=f"http://{NODE}:9000")
    return len([p for p in files.find("graduate/traffic") if p.endswith(".parquet")])


if __name__ == "__main__":
    os.environ["WORK"] = sys.argv[2]
    sys.stdout.write(json.dumps(story(*map(Path, sys.argv[1:5]))))
