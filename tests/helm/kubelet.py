"""A kubelet in small: starts the containers of a rendered pod with exactly their command, args, env and mounted files.

Each pod has a network of its own on a bridge and is found by its Service's name; each container has its own mounts, a
read-only root when it asks for one, and no capabilities. ConfigMap and projected volumes change by the `..data` symlink
swap, as the kubelet's AtomicWriter does it. What is not like a cluster: the root file system is this machine's, the user
is this one (not 10001), limits are not enforced, and Services are names, not addresses of their own.

Must run in mount and network namespaces of its own: `unshare --mount --net`, as root or with `--map-root-user`.
"""

import base64
import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helm.render import ROOT, Object, containers

NODE = "10.244.0.1"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


class PodFailed(Exception):
    """A container ended, or was not ready in time; with the end of its log."""


def command(*words: str | Path) -> None:
    """Run a program of the machine's.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True)


def atomic_write(folder: Path, files: dict[str, str]) -> None:
    """A ConfigMap volume's files, changed by one rename of `..data`."""
    folder.mkdir(parents=True, exist_ok=True)
    stamped = folder / f"..{time.time_ns()}"
    stamped.mkdir()
    for name, text in files.items():
        (stamped / name).write_text(text)
    link = folder / "..data_tmp"
    link.symlink_to(stamped.name)
    before = (folder / "..data").resolve() if (folder / "..data").exists() else None
    link.replace(folder / "..data")
    for name in files:
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(f"..data/{name}")
    if before is not None:
        shutil.rmtree(before)


@dataclass(slots=True)
class Running:
    """One container that goes on running."""

    name: str
    spec: Object
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])


@dataclass(slots=True)
class Pod:
    """A pod that was started."""

    name: str
    address: str
    volumes: dict[str, Path]
    running: list[Running] = field(default_factory=list)

    def stop(self, seconds: float) -> dict[str, int]:
        """SIGTERM to all containers, SIGKILL after the grace; exit statuses by name."""
        for one in self.running:
            one.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        found = {}
        for one in self.running:
            try:
                found[one.name] = one.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                found[one.name] = one.process.wait()
        self.running.clear()
        return found


class Kubelet:
    """Starts pods of one node. Objects are read when a pod starts; `sync` carries a ConfigMap's change into its volumes."""

    def __init__(
        self,
        work: Path,
        objects: list[Object],
        secrets: dict[str, dict[str, str]],
        names: dict[str, str],
    ) -> None:
        """`names` are further host names, with their addresses; `secrets` their decoded data by name."""
        self.work = work
        self.objects = {(o["kind"], o["metadata"]["name"]): o for o in objects}
        self.secrets = secrets
        self.names = dict(names)
        self.pods: dict[str, Pod] = {}
        self._numbers = itertools.count(2)
        self._mounted: list[tuple[str, Path]] = []
        """ConfigMap volumes: the ConfigMap's name and the folder that shows it."""
        self._shims = work / "bin"
        self._make_node()

    def _make_node(self) -> None:
        self._shims.mkdir(parents=True)
        for name, words in {
            "graduate": f'"{sys.executable}" -m graduate',
            "python": f'"{sys.executable}"',
        }.items():
            file = self._shims / name
            file.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec {words} "$@"\n')
            file.chmod(0o755)
        command("mount", "--make-rprivate", "/")
        command("mount", "-t", "tmpfs", "tmpfs", "/run")
        Path("/run/netns").mkdir()
        etc = Path("/run/etc")
        shutil.copytree(
            "/etc", etc, symlinks=True, ignore_dangling_symlinks=True, ignore=_unreadable
        )
        for below in ("policy", "rollouts", "sync"):
            (etc / "graduate" / below).mkdir(parents=True)
        command("mount", "--bind", etc, "/etc")
        Path("/run/secrets/kubernetes.io/serviceaccount").mkdir(parents=True)
        var = Path("/run/varlib")
        (var / "graduate").mkdir(parents=True)
        command("mount", "--bind", var, "/var/lib")
        command("ip", "link", "set", "lo", "up")
        command("ip", "link", "add", "cni0", "type", "bridge")
        command("ip", "addr", "add", f"{NODE}/24", "dev", "cni0")
        command("ip", "link", "set", "cni0", "up")

    def start(
        self, kind: str, name: str, account: dict[str, str] | None = None, timeout: float = 90.0
    ) -> Pod:
        """The pod of a workload, ready by its own probes. `account` are the files of its service account, if it has a token.

        Raises:
            PodFailed: a container ended or was not ready in time.
        """
        template = self.objects[kind, name]["spec"]["template"]
        pod = Pod(name, self._network(name), {})
        self.pods[name] = pod
        self._name(template, pod.address)
        for volume in template["spec"].get("volumes", ()):
            pod.volumes[volume["name"]] = self._volume(name, volume)
        token = template["spec"]["automountServiceAccountToken"]
        if token:
            folder = self.work / name / "account"
            folder.mkdir(parents=True)
            for file, text in (account or {}).items():
                (folder / file).write_text(text)
            pod.volumes["(account)"] = folder
        for spec, role in containers(template):
            self._container(pod, template, spec, role, timeout)
        return pod

    def _network(self, name: str) -> str:
        number = next(self._numbers)
        address = f"10.244.0.{number}"
        command("ip", "netns", "add", name)
        command(
            "ip",
            "link",
            "add",
            f"veth{number}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            name,
        )
        command("ip", "link", "set", f"veth{number}", "master", "cni0", "up")
        command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            command("ip", "-n", name, "link", "set", device, "up")
        return address

    def _name(self, template: Object, address: str) -> None:
        """Services that select the pod get its address."""
        labels = template["metadata"]["labels"]
        for (kind, name), one in self.objects.items():
            if kind == "Service" and all(
                labels.get(k) == v for k, v in one["spec"]["selector"].items()
            ):
                self.names[name] = address
        lines = [
            f"{address} {name}\n"
            for name, address in {**self.names, "localhost": "127.0.0.1"}.items()
        ]
        Path("/etc/hosts").write_text("".join(lines))

    def _volume(self, pod: str, volume: Object) -> Path:
        folder: Path = self.work / pod / "volumes" / volume["name"]
        if claim := volume.get("persistentVolumeClaim"):
            folder = self.work / "claims" / claim["claimName"]
        folder.mkdir(parents=True, exist_ok=True)
        sources = volume.get("projected", {}).get("sources", [volume])
        files: dict[str, str] = {}
        for source in sources:
            if "configMap" in source:
                name = source["configMap"]["name"]
                self._mounted.append((name, folder))
                files |= _chosen(
                    self.objects["ConfigMap", name].get("data", {}), source["configMap"]
                )
            elif "secret" in source:
                files |= _chosen(self.secrets[source["secret"]["name"]], source["secret"])
        if files or "configMap" in volume:
            atomic_write(folder, files)
        return folder

    def sync(self, name: str, data: dict[str, str]) -> None:
        """Carry a ConfigMap's new data into the volumes that show it; other files of a projected volume stay."""
        self.objects["ConfigMap", name]["data"] = data
        for mounted, folder in self._mounted:
            if mounted == name:
                shown = folder / "..data"
                kept = {p.name: p.read_text() for p in shown.iterdir()} if shown.exists() else {}
                atomic_write(folder, {**kept, **data})

    def _environment(self, spec: Object, template: Object) -> dict[str, str]:
        found = {"PATH": f"{self._shims}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
        found |= {"KUBERNETES_SERVICE_HOST": NODE, "KUBERNETES_SERVICE_PORT": "6443"}
        for source in spec.get("envFrom", ()):
            found |= self.secrets[source["secretRef"]["name"]]
        for one in spec.get("env", ()):
            if "value" in one:
                found[one["name"]] = _REFERENCE.sub(lambda m: found.get(m[1], m[0]), one["value"])
            elif "secretKeyRef" in one["valueFrom"]:
                ref = one["valueFrom"]["secretKeyRef"]
                found[one["name"]] = self.secrets[ref["name"]][ref["key"]]
            else:
                raise PodFailed(f"{spec['name']}: {one} is not known to this kubelet")
        return found

    def _mount_script(self, pod: Pod, spec: Object) -> list[str]:
        """Shell lines that make the container's file system."""
        lines = ["mount --make-rprivate /"]
        mounts = [
            (m["mountPath"], self._source(pod, m), m.get("readOnly", False))
            for m in spec.get("volumeMounts", ())
        ]
        if "(account)" in pod.volumes:
            mounts.append((ACCOUNT, pod.volumes["(account)"], True))
        for path, source, is_read_only in sorted(mounts):
            lines += [f"mkdir -p {path} 2>/dev/null || true", *_carried(path, source)]
            lines.append(f"mount --rbind {source} {path}")
            if is_read_only:
                lines.append(f"mount -o remount,bind,ro {path}")
        if spec["securityContext"].get(
            "readOnlyRootFilesystem"
        ):  # last: until now mount points were made
            lines += [
                f"mount -o remount,bind,ro {place}" for place in ("/etc", "/var/lib", "/run", "/")
            ]
        return lines

    def _source(self, pod: Pod, mount: Object) -> Path:
        folder: Path = pod.volumes[mount["name"]]
        if "subPath" in mount:
            folder = folder / mount["subPath"]
            folder.mkdir(exist_ok=True)
        # A nested mount needs its mount point in the outer volume, as the container runtime makes it.
        for outer in pod.volumes.values():
            if outer.name == "home" or "claims" in outer.parts:
                for below in ("traffic", "adapters", "datasets", "models"):
                    if (
                        mount["mountPath"] == f"/var/lib/graduate/{below}"
                        and outer != pod.volumes[mount["name"]]
                    ):
                        (outer / below).mkdir(exist_ok=True)
        return folder

    def _container(
        self, pod: Pod, template: Object, spec: Object, role: str, timeout: float
    ) -> None:
        words = [*spec["command"], *map(str, spec.get("args", ()))]
        script = [
            *self._mount_script(pod, spec),
            'cd /var/lib/graduate && exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"',
        ]
        log = self.work / f"{pod.name}-{spec['name']}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", pod.name, "unshare", "--mount", "sh", "-ec", "\n".join(script), "sh", *words],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=self._environment(spec, template),
            )  # fmt: skip
        one = Running(spec["name"], spec, process, log)
        if role == "init":
            if process.wait(timeout) != 0:
                raise PodFailed(
                    f"{pod.name}/{one.name} ended with {process.returncode}:\n{one.last_words()}"
                )
            return
        pod.running.append(one)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            self._probe(pod, one, spec.get(probe), timeout)

    def _probe(self, pod: Pod, one: Running, probe: Object | None, timeout: float) -> None:
        """The probe succeeds, in time."""
        if probe is None or "httpGet" not in probe:
            return
        ports = {p["name"]: p["containerPort"] for p in one.spec["ports"]}
        url = f"http://{pod.address}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        deadline = time.monotonic() + timeout
        while True:
            if one.process.poll() is not None:
                raise PodFailed(
                    f"{pod.name}/{one.name} ended with {one.process.returncode}:\n{one.last_words()}"
                )
            with (
                contextlib.suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(url, timeout=5),
            ):
                return
            if time.monotonic() > deadline:
                raise PodFailed(
                    f"{pod.name}/{one.name}: {url} is not 200 in {timeout} s:\n{one.last_words()}"
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """End whatever still runs."""
        for pod in self.pods.values():
            pod.stop(5.0)


def _unreadable(folder: str, names: list[str]) -> set[str]:
    return {n for n in names if not os.access(os.path.join(folder, n), os.R_OK)}


def _chosen(data: dict[str, str], source: Object) -> dict[str, str]:
    items = source.get("items")
    return {i["path"]: data[i["key"]] for i in items} if items else dict(data)


def _carried(path: str, source: Path) -> Iterator[str]:
    """Lines that keep the interpreter, the environment and the project when `path` is mounted over them."""
    for needed in {Path(sys.prefix), Path(sys.base_prefix), ROOT, Path(os.environ["WORK"])}:
        if needed.is_relative_to(path):
            inside = source / needed.relative_to(path)
            yield f"mkdir -p {inside} && mount --rbind {needed} {inside}"


def decoded(secret: Object) -> dict[str, str]:
    """A Secret's data as text."""
    return {k: base64.b64decode(v).decode() for k, v in secret["data"].items()}


__all__ = ["NODE", "Any", "Kubelet", "Pod", "PodFailed", "atomic_write", "decoded"]
