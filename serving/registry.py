"""The registry of adapters: a folder or an `s3://` prefix of immutable versions, each a PEFT folder with a manifest.

    <root>/<name>/<version>/adapter_config.json
                            adapter_model.safetensors
                            manifest.json              written last: a version without one does not exist
                            lineage.json
                            claim.json                 in a bucket only: written first, by whoever got the number

Decides names, versions and what is refused. Knows no torch: weights are bytes here, their header is JSON.
"""

import contextlib
import datetime
import hashlib
import json
import re
import shutil
import struct
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import msgspec

SCHEMA = 1
MAX_RANK = 65_536
MAX_ALPHA = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_REQUIRED = ("adapter_config.json", "adapter_model.safetensors")


class RegistryError(Exception):
    """Root of what the registry refuses."""


class UnknownAdapter(RegistryError):
    """No such name or version, or a name that points outside."""


class BrokenAdapter(RegistryError):
    """The folder is not a whole PEFT adapter in safetensors."""


class ForeignAdapter(RegistryError):
    """Made for another base model."""


class RegistryUnreachable(RegistryError):
    """The bucket does not answer, or refuses us."""


@dataclass(frozen=True, slots=True, order=True)
class AdapterRef:
    """One published version."""

    name: str
    version: int

    @property
    def id(self) -> str:
        """The id on the wire, such as `tickets/3`."""
        return f"{self.name}/{self.version}"


class ManifestFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a publisher says of an adapter; the registry adds name, version, digests and time."""

    base_model: str
    base_model_digest: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    prompt: str | None = None
    max_input_chars: int | None = None
    max_new_tokens: int = 64
    route: str | None = None
    answer: dict[str, Any] = {}
    metrics: dict[str, float] = {}


class Manifest(ManifestFields, frozen=True, kw_only=True):
    """`manifest.json`. `digest` is the SHA-256 of the weights' file, `template_hash` of the prompt."""

    name: str
    version: int
    digest: str
    template_hash: str | None = None
    created_at: str = ""
    schema: int = SCHEMA


def check_folder(folder: Path) -> dict[str, Any]:
    """The adapter's config, when the folder is a whole LoRA in safetensors.

    Raises:
        BrokenAdapter: a file is missing, pickled, not readable, r or lora_alpha is not a number that works, or a lora_A has
            no lora_B.
    """
    pickled = [
        p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
    ]
    if pickled:
        raise BrokenAdapter(f"{folder}: {pickled[0]} is a pickle; only safetensors are taken")
    for name in _REQUIRED:
        if not (folder / name).is_file():
            raise BrokenAdapter(f"{folder}: {name} is missing")
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
    except ValueError as why:
        raise BrokenAdapter(f"{folder}/adapter_config.json: not JSON: {why}") from why
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise BrokenAdapter(f"{folder}/adapter_config.json: peft_type = {found!r}; allowed: LORA")
    _check_scale(folder, config)
    tensors = tensor_names(folder / "adapter_model.safetensors")
    alone = {n.replace(".lora_A.", ".lora_B.") for n in tensors if ".lora_A." in n} ^ {
        n for n in tensors if ".lora_B." in n
    }
    if not tensors or alone:
        missing = min(alone) if alone else "any tensor"
        raise BrokenAdapter(
            f"{folder}/adapter_model.safetensors: {missing} or its other half is missing"
        )
    return config


def _check_scale(folder: Path, config: dict[str, Any]) -> None:
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise BrokenAdapter(
            f"{folder}/adapter_config.json: r = {rank!r:.40}; allowed: 1 to {MAX_RANK}"
        )
    if type(alpha) not in (int, float) or not abs(alpha) <= MAX_ALPHA:
        raise BrokenAdapter(
            f"{folder}/adapter_config.json: lora_alpha = {alpha!r:.40}; allowed: a number up to {MAX_ALPHA}"
        )


def check_digest(ref: AdapterRef, folder: Path, digest: str) -> None:
    """The weights are those that were published.

    Raises:
        BrokenAdapter: another SHA-256 than the manifest's.
    """
    with (folder / "adapter_model.safetensors").open("rb") as source:
        found = hashlib.file_digest(source, "sha256").hexdigest()
    if found != digest:
        raise BrokenAdapter(
            f"adapter {ref.id}: adapter_model.safetensors has SHA-256 {found}, its manifest says {digest}"
        )


def tensor_names(file: Path) -> set[str]:
    """Names in a safetensors file, read from its header alone.

    Raises:
        BrokenAdapter: not a whole safetensors file.
    """
    try:
        with file.open("rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            if length > 100 << 20:
                raise ValueError("header too long")
            header = json.loads(source.read(length))
        end = max(
            (t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0
        )
        if file.stat().st_size != 8 + length + end:
            raise ValueError("cut off or too long")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as why:
        raise BrokenAdapter(f"{file}: not a whole safetensors file: {why}") from why
    return {name for name in header if name != "__metadata__"}


class Registry:
    """Adapters under one root. Reads see only whole versions; publishing is one rename, or the manifest written last."""

    def __init__(
        self, root: str | Path, cache: Path | None = None, allowed: Iterable[Path] = ()
    ) -> None:
        """`cache` is where a bucket's versions are kept; links in a folder may lead into it and into `allowed` alone."""
        self.root = str(root).rstrip("/")
        self._is_local = "://" not in self.root
        # A listing kept from before would hide what others have published since.
        options = {} if self._is_local else {"use_listings_cache": False}
        self._fs, self._base = fsspec.core.url_to_fs(self.root, **options)
        self._cache = cache or Path(tempfile.gettempdir()) / "graduate-adapters"
        self._roots = [Path(place).resolve() for place in (self._base, *allowed)]
        self._fetching: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def _found(self, name: str) -> list[AdapterRef]:
        """Published versions of one name, or of all for `*`."""
        with self._reached():
            self._fs.invalidate_cache()
            found = self._fs.glob(f"{self._base}/{name}/*/manifest.json")
        refs = []
        for path in found:
            name, version = path.split("/")[-3:-1]
            if _VERSION.fullmatch(version) and _NAME.fullmatch(name):
                refs.append(AdapterRef(name, int(version)))
        return sorted(refs)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """A remote file system's own errors as ours; a missing file stays one."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as why:  # each kind of bucket has an error tree of its own
            if self._is_local:
                raise
            raise RegistryUnreachable(f"registry {self.root}: {type(why).__name__}: {why}") from why

    def list(self) -> list[AdapterRef]:
        """Every published version, in order.

        Raises:
            RegistryUnreachable: a bucket that does not answer.
        """
        return self._found("*")

    def resolve(self, adapter_id: str) -> AdapterRef:
        """The version that `tickets`, `tickets/latest` or `tickets/3` means.

        Raises:
            UnknownAdapter: not a name in this registry.
        """
        name, _, version = adapter_id.partition("/")
        if not _NAME.fullmatch(name) or not (
            version in ("", "latest") or _VERSION.fullmatch(version)
        ):
            raise UnknownAdapter(
                f"adapter {adapter_id[:100]!r}: allowed: NAME, NAME/latest or NAME/NUMBER of the registry {self.root}"
            )
        if version not in ("", "latest"):
            ref = AdapterRef(name, int(version))
            with self._reached():
                is_there = self._fs.exists(self._path(ref, "manifest.json"))
            if not is_there:
                raise UnknownAdapter(f"adapter {adapter_id!r} is not in the registry {self.root}")
            return ref
        versions = self._found(name)
        if not versions:
            raise UnknownAdapter(f"adapter {adapter_id!r} is not in the registry {self.root}")
        return versions[-1]

    def manifest(self, ref: AdapterRef) -> Manifest:
        """What is known about a version.

        Raises:
            UnknownAdapter: there is none.
            BrokenAdapter: its manifest cannot be read, or leads out of the registry.
        """
        self._check_inside(ref)
        try:
            with self._reached():
                data = self._fs.cat_file(self._path(ref, "manifest.json"))
        except FileNotFoundError as why:
            raise UnknownAdapter(f"adapter {ref.id!r} is not in the registry {self.root}") from why
        try:
            return msgspec.json.decode(data, type=Manifest)
        except msgspec.MsgspecError as why:
            raise BrokenAdapter(f"adapter {ref.id}: manifest.json: {why}") from why

    def open_local(self, ref: AdapterRef) -> Path:
        """A local folder with the version's files; fetched once from a remote registry, also when several ask at once.

        Raises:
            BrokenAdapter: a file of it leads out of the registry.
        """
        if self._is_local:
            self._check_inside(ref)
            return self._folder(ref)
        digest = self.manifest(ref).digest[:16]
        folder = self._cache / f"{ref.name}-{ref.version}-{digest}"
        with self._fetching[folder]:
            if not folder.exists():
                self._fetch(ref, folder)
        return folder

    def _fetch(self, ref: AdapterRef, folder: Path) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache) as scratch:
            target = Path(scratch) / "adapter"
            with self._reached():
                self._fs.get(self._path(ref, ""), str(target), recursive=True)
            with contextlib.suppress(OSError):  # another process fetched the same version
                target.rename(folder)

    def _folder(self, ref: AdapterRef) -> Path:
        return Path(self._base) / ref.name / str(ref.version)

    def _check_inside(self, ref: AdapterRef) -> None:
        """No link of a version in a folder leads anywhere else: whoever may write here shall not have other files read."""
        if not self._is_local:
            return
        folder = self._folder(ref)
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            real = path.resolve()
            if not any(real.is_relative_to(root) for root in self._roots):
                raise BrokenAdapter(
                    f"adapter {ref.id}: {path.name} leads out of the registry {self.root}"
                )

    def publish(
        self, name: str, folder: Path, fields: ManifestFields, lineage: dict[str, Any]
    ) -> AdapterRef:
        """Put a PEFT folder into the registry as the next version of `name`.

        Raises:
            BrokenAdapter: the folder is not a whole adapter.
            UnknownAdapter: the name is not one.
            RegistryUnreachable: a bucket that does not answer.
        """
        if not _NAME.fullmatch(name):
            raise UnknownAdapter(f"name {name!r}: allowed: letters, digits, '.', '_' and '-'")
        check_folder(folder)
        weights = (folder / "adapter_model.safetensors").read_bytes()
        number = 0
        while True:
            # A number that another publisher has claimed is passed over, also when it never finished.
            number = max(number, *(ref.version for ref in self._found(name)), 0) + 1
            ref = AdapterRef(name, number)
            manifest = Manifest(
                **msgspec.structs.asdict(fields),
                name=name,
                version=ref.version,
                digest=hashlib.sha256(weights).hexdigest(),
                template_hash=hashlib.sha256(fields.prompt.encode()).hexdigest()[:16]
                if fields.prompt is not None
                else None,
                created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
            documents = {
                "lineage.json": msgspec.json.format(msgspec.json.encode(lineage), indent=2),
                "manifest.json": msgspec.json.format(msgspec.json.encode(manifest), indent=2),
            }
            put = self._publish_local if self._is_local else self._publish_remote
            if put(ref, folder, documents):
                return ref

    def _publish_local(self, ref: AdapterRef, folder: Path, documents: dict[str, bytes]) -> bool:
        """One rename; False when another publisher took the number."""
        parent = self._folder(ref).parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".publish-") as scratch:
            target = Path(scratch) / "adapter"
            shutil.copytree(folder, target)
            for name, data in documents.items():
                (target / name).write_bytes(data)
            try:
                target.rename(parent / str(ref.version))
            except OSError:
                if (parent / str(ref.version)).exists():
                    return False
                raise
        return True

    def _publish_remote(self, ref: AdapterRef, folder: Path, documents: dict[str, bytes]) -> bool:
        """A claim that only one writer can create, then the files; False when another publisher took the number."""
        with self._reached():
            try:
                claim = msgspec.json.encode({"id": ref.id})
                self._fs.pipe_file(self._path(ref, "claim.json"), claim, mode="create")
            except FileExistsError:
                return False
            for file in sorted(folder.iterdir()):
                if file.is_file():
                    self._fs.put_file(str(file), self._path(ref, file.name))
            for name, data in documents.items():
                self._fs.pipe_file(self._path(ref, name), data)
        return True

    def _path(self, ref: AdapterRef, file: str) -> str:
        return f"{self._base}/{ref.name}/{ref.version}/{file}".rstrip("/")
