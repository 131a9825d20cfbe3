"""Running helm on the chart, and looking at what it makes: objects, their pods, and what is wrong with them."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "graduate"
EXAMPLES = sorted((CHART / "ci").glob("*.yaml"))


class HelmFailed(Exception):
    """helm ended with a status other than 0; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Helm:
    """One helm binary."""

    binary: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str | Path) -> str:
        """Standard output.

        Raises:
            HelmFailed: with standard error.
        """
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=dict(self.environment),
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise HelmFailed(done.stderr + done.stdout)
        return done.stdout

    def template(
        self, *settings: str, values: Sequence[Path] = (), name: str = "graduate"
    ) -> list[Object]:
        """The chart's objects, `settings` as for `--set`."""
        arguments: list[str | Path] = ["template", name, CHART, "--namespace", "default"]
        for file in values:
            arguments += ["--values", file]
        for setting in settings:
            arguments += ["--set", setting]
        return parsed(self.run(*arguments))


def parsed(text: str) -> list[Object]:
    """Objects of a stream of YAML documents."""
    return [one for one in yaml.safe_load_all(text) if one]


def helm_paths() -> dict[str, Path]:
    """helm 4 and helm 3, fetched when they are not there."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "get_helm.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [Path(line.split("  ")[0]) for line in done.stdout.splitlines()]
    return {path.parent.name: path for path in paths}


def of_kind(objects: Sequence[Object], kind: str) -> dict[str, Object]:
    """Objects of a kind, by name."""
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """`Kind/name` and pod template (or Pod) of everything that makes pods."""
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        match one["kind"]:
            case "Pod":
                yield where, one
            case "Deployment" | "StatefulSet" | "Job":
                yield where, one["spec"]["template"]
            case "CronJob":
                yield where, one["spec"]["jobTemplate"]["spec"]["template"]
            case "TrainingRuntime":
                for job in one["spec"]["template"]["spec"]["replicatedJobs"]:
                    yield where, job["template"]["spec"]["template"]


def containers(pod: Object) -> Iterator[tuple[Object, str]]:
    """Containers with `main`, `sidecar` (goes on running) or `init`."""
    for one in pod["spec"].get("initContainers", ()):
        yield one, "sidecar" if one.get("restartPolicy") == "Always" else "init"
    for one in pod["spec"]["containers"]:
        yield one, "main"


def port_names(pod: Object) -> dict[str, int]:
    """Named ports of a pod."""
    return {p["name"]: p["containerPort"] for c, _ in containers(pod) for p in c.get("ports", ())}


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether all of the selector's labels are there."""
    return all(labels.get(key) == value for key, value in selector.items())
