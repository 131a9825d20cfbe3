"""The Dockerfiles: clean for hadolint, and their build steps really run: the files that COPY names, the lines that RUN has.

There is no container engine here. The build stage's steps run in a bare folder with this machine's Python instead of the
base image's; the second stage (copying `/opt/graduate`, the user) is only read.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helm.render import ROOT

DOCKERFILES = sorted((ROOT / "images").glob("*.Dockerfile"))
BY_HAND = os.environ.get("GRADUATE_IMAGES", "router").split(",")
"""Images whose steps are run; `GRADUATE_IMAGES=router,monitor,serving,training` for all (minutes, and gigabytes for torch)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction, its lines joined."""

    stage: int
    word: str
    rest: str


def steps(file: Path) -> Iterator[Step]:
    """Instructions of a Dockerfile with the number of their stage."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE)
    stage = -1
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            stage += word == "FROM"
            yield Step(stage, word, rest.strip())


def of(file: Path, word: str, stage: int) -> list[str]:
    """What follows one kind of instruction in a stage."""
    return [s.rest for s in steps(file) if (s.word, s.stage) == (word, stage)]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.stem)
def test_an_image_is_small_pinned_and_not_root(file: Path) -> None:
    found = list(steps(file))
    assert [s.rest for s in found if s.word == "FROM"] == ["${PYTHON} AS build", "${PYTHON}"]
    assert re.fullmatch(r"PYTHON=python:3\.11\.\d+-slim-\w+", of(file, "ARG", -1)[0])
    assert of(file, "USER", 1) == ["10001:10001"]
    assert of(file, "ENTRYPOINT", 1) == ['["graduate"]']
    assert len(of(file, "HEALTHCHECK", 1)) == 1
    labels = of(file, "LABEL", 1)[0]
    for wanted in ("title", "version", "revision", "licenses", "source", "description"):
        assert f"org.opencontainers.image.{wanted}=" in labels
    assert of(file, "COPY", 1) == ["--from=build /opt/graduate /opt/graduate"]
    assert all("--constraint constraints.txt" in r for r in of(file, "RUN", 0) if "'.[" in r)


def test_the_chart_runs_what_the_images_are_made_for() -> None:
    values = (ROOT / "helm" / "graduate" / "values.yaml").read_text()
    assert {f"graduate/{f.stem}" for f in DOCKERFILES} == set(
        re.findall(r"repository: (graduate/\w+)", values)
    )


@pytest.mark.slow
@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.stem)
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module", params=BY_HAND)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A Dockerfile, and the folder that its build stage made."""
    file = ROOT / "images" / f"{request.param}.Dockerfile"
    source, prefix = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("opt") / "graduate"
    for copied in of(file, "COPY", 0):
        *names, target = shlex.split(copied)
        for name in names:
            place = source / (name if target == "./" else target)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, place)
    python = tmp_path_factory.mktemp("bin")
    (python / "python").symlink_to(os.path.realpath(sys.executable))
    environment = {
        k: v
        for k, v in os.environ.items()
        if k.startswith(("PIP_", "SSL_", "REQUESTS_")) or "proxy" in k.lower()
    }
    environment |= {"PATH": f"{python}:/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home"))}
    for line in of(file, "RUN", 0):
        done = subprocess.run(
            ["sh", "-ec", line.replace("/opt/graduate", str(prefix))],
            cwd=source, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return file, prefix


@pytest.mark.slow
def test_the_build_steps_run_in_a_bare_folder(built: tuple[Path, Path]) -> None:
    file, prefix = built
    packages = {
        p["metadata"]["name"]
        for p in json.loads((prefix / "share" / "packages.json").read_text())["installed"]
    }
    assert "graduate" in packages
    if file.stem == "router":
        assert not packages & {"torch", "transformers", "evidently", "pandas", "scikit-learn"}


@pytest.mark.slow
def test_the_entry_point_starts_there(built: tuple[Path, Path], tmp_path: Path) -> None:
    file, prefix = built
    environment = {"PATH": f"{prefix}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [prefix / "bin" / "graduate", "--help"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if file.stem != "router":
        return
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nbackends: {t: {kind: openai, base_url: http://127.0.0.1:9/v1}}\ndefault: {teacher: {backend: t}}\n"
    )
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    words = [
        "router",
        "serve",
        "--policy",
        "policy.yaml",
        "--home",
        "home",
        "--port",
        str(ports[0]),
        "--admin-port",
        str(ports[1]),
    ]
    with subprocess.Popen(
        [prefix / "bin" / "graduate", *words], env=environment, cwd=tmp_path
    ) as router:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    with urllib.request.urlopen(
                        f"http://127.0.0.1:{ports[1]}/ready", timeout=2
                    ) as reply:
                        assert json.load(reply)["ready"]
                        break
                except OSError:
                    assert router.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        finally:
            router.terminate()
        assert router.wait(30) == 0
