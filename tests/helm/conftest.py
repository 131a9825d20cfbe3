"""Real helm binaries, each with a home of its own."""

import os
from pathlib import Path

import pytest

from tests.helm.render import Helm, helm_paths


@pytest.fixture(scope="session")
def binaries() -> dict[str, Path]:
    """helm 4 and helm 3."""
    return helm_paths()


@pytest.fixture(scope="session")
def helm_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No configuration of the user's is read."""
    home = tmp_path_factory.mktemp("helm")
    places = {f"HELM_{name}_HOME": str(home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    return {"PATH": os.environ["PATH"], "HOME": str(home), **places}


@pytest.fixture(scope="session")
def helm(binaries: dict[str, Path], helm_environment: dict[str, str]) -> Helm:
    """The newest helm."""
    return Helm(binaries["helm4"], helm_environment)


@pytest.fixture(scope="session", params=["helm4", "helm3"])
def each_helm(
    request: pytest.FixtureRequest, binaries: dict[str, Path], helm_environment: dict[str, str]
) -> Helm:
    """Both."""
    return Helm(binaries[request.param], helm_environment)
