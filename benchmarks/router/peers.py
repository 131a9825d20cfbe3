"""Who is measured: the command of each peer, its files, and what has to be installed for it."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.router.policies import MODES, policy_text

PEERS = ("ours", "bare-asgi", "naive-fastapi", "nginx", "litellm")
DIRECT = "direct"
"""The upstream itself: what is subtracted."""

_LITELLM = """\
model_list:
  - model_name: bench-model
    litellm_params: {{model: openai/bench-model, api_base: "{upstream}/v1", api_key: sk-upstream}}
litellm_settings: {{telemetry: false, set_verbose: false, num_retries: 0, request_timeout: 60}}
general_settings: {{disable_spend_logs: true}}
"""
_LITELLM_ENV = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
}
_NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.err warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_body_buffer_size 64k;
  keepalive_requests 10000000;
  upstream up {{ server {host}; keepalive 512; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


class NotInstalled(Exception):
    """A program that a peer or the load needs is missing; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How one proxy is started. `traffic_log` is where it keeps its records, None for those that keep none."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    traffic_log: Path | None = None


def names(peers: list[str], modes: list[str]) -> list[str]:
    """Rows of the table: `ours` once for each mode, the upstream itself first."""
    rows = [DIRECT]
    for peer in peers:
        rows += [f"ours: {mode}" for mode in modes] if peer == "ours" else [peer]
    return rows


def require(peers: list[str], litellm: Path | None) -> None:
    """Nothing that the run needs is missing.

    Raises:
        NotInstalled: something is; all of it is named.
    """
    missing = [
        f"{program} is not installed: {how}"
        for program, how in (
            ("wrk", "apt-get install wrk"),
            ("cc", "apt-get install gcc libc6-dev"),
            ("taskset", "apt-get install util-linux"),
        )
        if shutil.which(program) is None
    ]
    if "nginx" in peers and shutil.which("nginx") is None:
        missing.append(
            "nginx is not installed: apt-get install nginx-light, or leave it out of --peers"
        )
    if "litellm" in peers and _litellm(litellm) is None:
        where = f"{litellm} is not there" if litellm else "litellm is not installed"
        missing.append(
            f"{where}: python3 -m venv litellm-venv && litellm-venv/bin/pip install 'litellm[proxy]', "
            "then --litellm litellm-venv/bin/litellm; or leave it out of --peers"
        )
    if missing:
        raise NotInstalled("\n".join(missing))


def _litellm(given: Path | None) -> str | None:
    return shutil.which(str(given.absolute()) if given else "litellm")


def peer(name: str, port: int, upstream: str, folder: Path, litellm: Path | None) -> Peer:
    """How the row `name` is started, its configuration written into `folder`.

    Args:
        upstream: the upstream's address without a path.
    """
    if name.startswith("ours: "):
        return _ours(name, port, upstream, folder)
    if name == "nginx":
        return _nginx(port, upstream, folder)
    if name == "litellm":
        return _litellm_proxy(port, upstream, folder, litellm)
    module = {"bare-asgi": "bare_asgi", "naive-fastapi": "naive_fastapi"}[name]
    command = (
        sys.executable, "-m", "uvicorn", f"benchmarks.router.{module}:app", "--host", "127.0.0.1", "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error", "--no-server-header",
        "--no-date-header",
    )  # fmt: skip
    return Peer(name, command, {"UPSTREAM": upstream})


def _ours(name: str, port: int, upstream: str, folder: Path) -> Peer:
    """`graduate router serve`, as an operator starts it."""
    mode = name.removeprefix("ours: ")
    assert mode in MODES
    policy, home = folder / "policy.yaml", folder / "home"
    policy.write_text(policy_text(mode, upstream))
    command = (
        sys.executable, "-m", "graduate", "router", "serve", "--policy", str(policy), "--home", str(home),
        "--port", str(port), "--admin-port", "0",
    )  # fmt: skip
    return Peer(name, command, traffic_log=home / "traffic")


def _nginx(port: int, upstream: str, folder: Path) -> Peer:
    """One process, kept-alive connections to the upstream."""
    conf = folder / "nginx.conf"
    host = upstream.removeprefix("http://")
    conf.write_text(_NGINX.format(folder=folder, host=host, port=port))
    return Peer(
        "nginx", ("nginx", "-p", str(folder), "-e", str(folder / "nginx.err"), "-c", str(conf))
    )


def _litellm_proxy(port: int, upstream: str, folder: Path, litellm: Path | None) -> Peer:
    """Its proxy with one worker, nothing kept and nothing retried."""
    conf = folder / "litellm.yaml"
    conf.write_text(_LITELLM.format(upstream=upstream))
    program = _litellm(litellm)
    assert program is not None
    command = (
        program, "--config", str(conf), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
        "--telemetry", "False",
    )  # fmt: skip
    return Peer("litellm", command, _LITELLM_ENV)
