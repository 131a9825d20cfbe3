"""The production example, rendered by helm and run with exactly its args, env and mounted files (see kubelet.py).

What is changed, all by values: the teacher's address (a replaying one), the store's endpoint, the base model (a tiny one on
the shared claim), the pause between ticks. LoRAX needs a GPU and does not run here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving import base_model
from serving.registry import ManifestFields, Registry
from tests.helm.render import CHART, ROOT, Helm
from tests.tiny import random_adapter, tiny_model

pytestmark = pytest.mark.slow


def namespaces() -> list[str]:
    """The words that give a program mounts and a network of its own.

    Raises:
        pytest.skip.Exception: this machine allows neither root's way nor a user namespace.
    """
    for more in ([], ["--map-root-user"]):
        words = [
            "unshare",
            *more,
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        probe = "mount --make-rprivate / && ip link add probe type bridge"
        if (
            shutil.which("ip")
            and subprocess.run(
                [*words, "sh", "-ec", probe], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return words
    pytest.skip("needs iproute2 and the right to make mount and network namespaces")


@pytest.fixture(scope="module")
def seen(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What happened in the run."""
    words = namespaces()
    folder = tmp_path_factory.mktemp("node")
    work = folder / "work"
    work.mkdir()
    model = folder / "model"
    tiny_model(model)
    registry = Registry(folder / "registry")
    fields = ManifestFields(
        base_model="tiny", base_model_digest=base_model.load(str(model), folder).digest, rank=4, alpha=8.0, target_modules=("q_proj",),
        prompt="Ticket: {input}\nQueue:", max_new_tokens=8,
    )  # fmt: skip
    random_adapter(model, folder / "adapter", 1, ["q_proj", "v_proj"])
    registry.publish("tickets", folder / "adapter", fields, {})
    example = yaml.safe_load((CHART / "ci" / "production.yaml").read_text())
    text = example["policy"]["text"].replace(
        "https://api.openai.com/v1", "http://teacher.example.com:8000/v1"
    )
    values = folder / "values.yaml"
    changed = {
        "policy": {"text": text},
        "state": {"s3Endpoint": "http://10.244.0.1:9000"},
        "embedded": {"model": "/var/lib/graduate/models/tiny"},
        "monitor": {"every": "3s"},
        "router": {"ship": {"interval": "1s"}},
        "adapterSync": {"everySeconds": 2},
    }
    values.write_text(yaml.safe_dump(changed))
    rendered = folder / "rendered.yaml"
    command: list[str | Path] = ["template", "graduate", CHART, "--namespace", "default"]
    rendered.write_text(
        helm.run(*command, "--values", CHART / "ci" / "production.yaml", "--values", values)
    )
    adapter = folder / "registry" / "tickets" / "1"
    done = subprocess.run(
        [*words, sys.executable, "-m", "tests.helm.scenario", *map(str, (rendered, work, model, adapter))],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    (folder / "seen.json").write_text(done.stdout)  # to look at, with --basetemp
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_every_container_of_the_three_pods_runs_and_is_ready(seen: dict[str, object]) -> None:
    assert seen["containers"] == {
        "graduate-student": ["student"],
        "graduate-router": ["adapter-sync", "router", "ship"],
        "graduate-monitor": ["adapter-sync", "monitor"],
    }
    assert seen["metrics"]
    assert seen["monitor"] == {"ready": True, "tick_error": None}


def test_traffic_goes_through(seen: dict[str, object]) -> None:
    assert seen["without a key"] == 401
    teacher = {"status": 200, "served_by": "teacher", "text": "billing"}
    assert seen["dark launch"] == [teacher] * 3
    student = seen["student"]
    assert isinstance(student, list)
    assert [s["status"] for s in student] == [200] * 3
    assert {s["served_by"] for s in student} == {"student"}
    answers = seen["student answers"]
    assert isinstance(answers, list)
    assert len(answers) >= 6, "shadows of the dark launch, and what callers got"
    assert all(answer == [200, "tickets/1"] for answer in answers)


def test_an_edit_of_the_configmap_is_in_force_within_two_seconds(seen: dict[str, object]) -> None:
    for name in ("edit in force after", "bad edit told after", "rollouts in force after"):
        seconds = seen[name]
        assert isinstance(seconds, float)
        assert seconds < 2.0, name
    after = seen["after a bad edit"]
    assert isinstance(after, dict)
    assert after["status"] == 200, "the last good policy stays"


def test_the_monitor_moves_a_canary_by_patching_its_configmap(seen: dict[str, object]) -> None:
    patches = seen["patches"]
    assert isinstance(patches, list)
    assert {p.partition("?")[0] for p in patches} == {
        "/api/v1/namespaces/default/configmaps/graduate-rollouts"
    }
    rollouts = seen["rollouts"]
    assert isinstance(rollouts, dict)
    assert rollouts["tickets"]["state"] == "canary"
    assert rollouts["tickets"]["version"] == 1


def test_nothing_is_lost_when_the_pods_end(seen: dict[str, object]) -> None:
    assert seen["router stopped"] == {"adapter-sync": 0, "router": 0, "ship": 0}
    others = seen["others stopped"]
    assert isinstance(others, dict)
    # uvicorn raises SIGTERM again when it has ended; process 1 of a container is deaf to that and ends with 0.
    assert set(others.values()) <= {0, -signal.SIGTERM}
    assert isinstance(seen["shipped"], int)
    assert seen["shipped"] > 0
    assert isinstance(seen["traffic"], int)
    assert seen["traffic"] >= 7
