"""The registry: immutable versions, atomic publishing, and what is refused. A folder, and a remote file system in memory."""

import json
import shutil
import threading
from pathlib import Path

import msgspec
import pytest

from serving import base_model
from serving.errors import OperatorError
from serving.registry import (
    AdapterRef,
    BrokenAdapter,
    ManifestFields,
    Registry,
    RegistryUnreachable,
    UnknownAdapter,
)
from tests.tiny import random_adapter, tiny_model

FIELDS = ManifestFields(
    base_model="tiny", base_model_digest="d", rank=4, alpha=16, target_modules=("q_proj",), prompt="T: {input}"
)  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapter")
    tiny_model(root / "model")
    return random_adapter(root / "model", root / "a", 0, ["q_proj"])


def test_versions_count_up_and_resolve(tmp_path: Path, adapter: Path) -> None:
    registry = Registry(tmp_path)
    refs = [registry.publish("mail", adapter, FIELDS, {"n": n}) for n in range(3)]
    assert [r.id for r in refs] == ["mail/1", "mail/2", "mail/3"]
    assert registry.list() == refs
    assert registry.resolve("mail") == registry.resolve("mail/latest") == refs[2]
    assert registry.resolve("mail/2") == refs[1]
    manifest = registry.manifest(refs[1])
    assert (manifest.name, manifest.version, manifest.rank) == ("mail", 2, 4)
    assert len(manifest.digest) == 64
    assert json.loads((registry.open_local(refs[1]) / "lineage.json").read_text()) == {"n": 1}


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "mail/9",
        "mail/x",
        "../mail",
        "/etc",
        "mail/../mail",
        "",
        "mail/1/2",
        "mail/²",
        "mail/0",
        "mail/01",
        "mail/" + "1" * 5000,
    ],
)
def test_other_names_are_unknown(tmp_path: Path, adapter: Path, name: str) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish("mail", adapter, FIELDS, {})
    with pytest.raises(UnknownAdapter):
        registry.resolve(name)


def test_publishers_at_once_get_numbers_of_their_own(tmp_path: Path, adapter: Path) -> None:
    found: list[str] = []

    def publish() -> None:
        found.append(Registry(tmp_path).publish("mail", adapter, FIELDS, {}).id)

    threads = [threading.Thread(target=publish) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"mail/{n}" for n in range(1, 7)]
    assert [p.name for p in (tmp_path / "mail").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("pickle", "is a pickle", id="pickled weights"),
        pytest.param("no weights", "adapter_model.safetensors is missing", id="no weights"),
        pytest.param("no config", "adapter_config.json is missing", id="no config"),
        pytest.param(
            "other kind", "peft_type = 'IA3'; allowed: LORA", id="another kind of adapter"
        ),
        pytest.param({"r": None}, r"r = None; allowed: 1 to 65536", id="no rank"),
        pytest.param({"r": 0}, r"r = 0; allowed: 1 to 65536", id="rank 0"),
        pytest.param({"r": True}, r"r = True; allowed: 1 to 65536", id="rank that is no number"),
        pytest.param(
            {"lora_alpha": "16"}, r"lora_alpha = '16'; allowed: a number", id="alpha text"
        ),
        pytest.param({"lora_alpha": float("nan")}, r"lora_alpha = nan; allowed", id="alpha NaN"),
        pytest.param("cut", "not a whole safetensors file", id="weights cut off"),
    ],
)
def test_a_broken_folder_is_refused(
    tmp_path: Path, adapter: Path, change: str | dict[str, object], message: str
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if change == "pickle":
        (folder / "adapter_model.bin").write_bytes(b"x")
    elif change == "no weights":
        weights.unlink()
    elif change == "no config":
        config.unlink()
    elif change == "other kind":
        config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "IA3"}))
    elif isinstance(change, dict):
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    else:
        weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(BrokenAdapter, match=message):
        Registry(tmp_path / "r").publish("mail", folder, FIELDS, {})
    assert Registry(tmp_path / "r").list() == []


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, adapter: Path) -> None:
    registry = Registry(tmp_path)
    ref = registry.publish("mail", adapter, FIELDS, {})
    (registry.open_local(ref) / "manifest.json").write_text('{"rank": "four"}')
    with pytest.raises(BrokenAdapter, match=r"mail/1: manifest\.json"):
        registry.manifest(ref)


@pytest.mark.parametrize("linked", ["the version", "its name", "a file"])
def test_links_lead_out_of_the_registry_only_where_the_operator_allows_it(
    tmp_path: Path, adapter: Path, linked: str
) -> None:
    outside = Registry(tmp_path / "outside")
    ref = outside.publish("mail", adapter, FIELDS, {})
    there = outside.open_local(ref)
    here = tmp_path / "registry" / "mail" / "1"
    here.parent.parent.mkdir()
    if linked == "its name":
        here.parent.symlink_to(there.parent)
    elif linked == "the version":
        here.parent.mkdir()
        here.symlink_to(there)
    else:
        shutil.copytree(there, here)
        (here / "chat_template.jinja").symlink_to("/etc/passwd")
    for read in (Registry(tmp_path / "registry").open_local, Registry(here.parent.parent).manifest):
        with pytest.raises(BrokenAdapter, match="leads out of the registry"):
            read(ref)
    allowed = Registry(here.parent.parent, allowed=[tmp_path / "outside", Path("/etc")])
    assert allowed.manifest(ref) == outside.manifest(ref)
    assert (allowed.open_local(ref) / "adapter_model.safetensors").is_file()


def test_links_inside_the_registry_are_followed(tmp_path: Path, adapter: Path) -> None:
    """As mounted volumes have them, and a registry that is itself a link."""
    registry = Registry(tmp_path / "real")
    ref = registry.publish("mail", adapter, FIELDS, {})
    folder = registry.open_local(ref)
    (folder / "manifest.json").rename(folder / "..data")
    (folder / "manifest.json").symlink_to("..data")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Registry(tmp_path / "link").manifest(ref).name == "mail"
    assert (Registry(tmp_path / "link").open_local(ref) / "adapter_config.json").is_file()


def test_who_asks_together_for_a_remote_version_waits_for_one_fetch(
    adapter: Path, tmp_path: Path
) -> None:
    fetched = []

    class Counting(Registry):
        def _fetch(self, ref: AdapterRef, folder: Path) -> None:
            fetched.append(ref.id)
            super()._fetch(ref, folder)

    registry = Counting("memory://together", cache=tmp_path / "cache")
    ref = registry.publish("mail", adapter, FIELDS, {})
    threads = [threading.Thread(target=registry.open_local, args=(ref,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["mail/1"]
    assert [path.name[:7] for path in (tmp_path / "cache").iterdir()] == ["mail-1-"]


def test_a_remote_registry_by_fsspec(adapter: Path, tmp_path: Path) -> None:
    registry = Registry("memory://adapters", cache=tmp_path / "cache")
    ref = registry.publish("mail", adapter, FIELDS, {})
    assert registry.resolve("mail") == ref
    local = registry.open_local(ref)
    assert (local / "adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert msgspec.json.decode((local / "manifest.json").read_bytes())["name"] == "mail"


def test_a_number_that_another_publisher_has_claimed_is_passed_over(adapter: Path) -> None:
    registry = Registry("memory://claimed")
    registry._fs.pipe_file(f"{registry._base}/mail/1/claim.json", b"{}")
    assert registry.publish("mail", adapter, FIELDS, {}).id == "mail/2"
    assert [ref.id for ref in registry.list()] == ["mail/2"]


def test_a_bucket_that_does_not_answer_is_said_so() -> None:
    registry = Registry("memory://gone")

    def refuse(*_: object, **__: object) -> bool:
        raise ConnectionError("no route")

    registry._fs = type(
        "Gone", (), {"exists": refuse, "glob": refuse, "invalidate_cache": lambda _: None}
    )()
    for name in ("mail", "mail/1"):
        with pytest.raises(RegistryUnreachable, match="memory://gone: ConnectionError: no route"):
            registry.resolve(name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("./nowhere", "no such file or folder", id="nothing there"),
        pytest.param("EMPTY", r"no config.json and 0 \.gguf files", id="an empty folder"),
        pytest.param("FILE", r"a file must be a \.gguf", id="a file of another kind"),
        pytest.param("BAD", "not a GGUF model", id="a GGUF file that is none"),
    ],
)
def test_a_base_model_that_is_none_is_refused(tmp_path: Path, model: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    places = {"EMPTY": "empty", "FILE": "file.txt", "BAD": "bad.gguf"}
    with pytest.raises(OperatorError, match=message):
        base_model.load(
            str(tmp_path / places[model]) if model in places else model, tmp_path / "cache"
        )


def test_a_digest_tells_base_models_apart_and_is_the_same_again(tmp_path: Path) -> None:
    tiny_model(tmp_path / "one")
    tiny_model(tmp_path / "two", num_layers=3)
    digests = [base_model.load(str(tmp_path / n), tmp_path).digest for n in ("one", "one", "two")]
    assert digests[0] == digests[1] != digests[2]
