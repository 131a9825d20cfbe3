"""The registry in a bucket: moto's S3 server in this process, the same files and refusals as in a folder."""

import asyncio
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from serving import base_model
from serving.generation import Job, Sampling, TokenOut
from serving.registry import (
    AdapterRef,
    ManifestFields,
    Registry,
    RegistryUnreachable,
    UnknownAdapter,
)
from tests.tiny import random_adapter, tiny_model

with warnings.catch_warnings():
    # llguidance's torch part makes torch import what torch deprecates.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    from serving.settings import WorkerSettings
    from serving.worker import Worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The `s3://` address of a fresh bucket, found through the environment as an operator would set it."""
    import boto3
    import s3fs

    for key, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = "b" + "".join(c for c in request.node.name.lower() if c.isalnum())[:50]
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/adapters"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and two adapters of it, `a` and `b`."""
    root = tmp_path_factory.mktemp("tiny")
    tiny_model(root / "model")
    random_adapter(root / "model", root / "a", 1, ["q_proj", "v_proj"])
    random_adapter(root / "model", root / "b", 2, ["q_proj", "v_proj"])
    return root


def fields(digest: str = "d") -> ManifestFields:
    return ManifestFields(
        base_model="tiny", base_model_digest=digest, rank=4, alpha=16,
        target_modules=("q_proj", "v_proj"),
    )  # fmt: skip


def test_a_bucket_holds_what_a_folder_holds(bucket: str, tiny: Path, tmp_path: Path) -> None:
    registry = Registry(bucket, tmp_path / "cache")
    assert registry.list() == []
    with pytest.raises(UnknownAdapter):
        registry.resolve("mail")
    refs = [registry.publish("mail", tiny / "a", fields(), {"n": n}) for n in range(2)]
    assert refs == registry.list() == [AdapterRef("mail", 1), AdapterRef("mail", 2)]
    assert Registry(bucket).resolve("mail/latest") == refs[1]
    folder = registry.open_local(refs[0])
    assert registry.open_local(refs[0]) == folder
    published = load_file(folder / "adapter_model.safetensors")
    assert published.keys() == load_file(tiny / "a" / "adapter_model.safetensors").keys()
    with pytest.raises(UnknownAdapter):
        registry.resolve("mail/3")


def test_a_reader_sees_what_another_process_publishes(
    bucket: str, tiny: Path, tmp_path: Path
) -> None:
    reader, writer = Registry(bucket, tmp_path), Registry(bucket)
    writer.publish("mail", tiny / "a", fields(), {})
    assert reader.resolve("mail").version == 1
    with pytest.raises(UnknownAdapter):
        reader.resolve("mail/2")
    writer.publish("mail", tiny / "b", fields(), {})
    assert reader.resolve("mail/2").version == reader.resolve("mail").version == 2


def test_publishers_at_once_get_numbers_and_files_of_their_own(
    bucket: str, tiny: Path, tmp_path: Path
) -> None:
    start = threading.Barrier(6)
    found: list[tuple[AdapterRef, str]] = []

    def publish(which: str) -> None:
        registry = Registry(bucket)
        start.wait()
        found.append((registry.publish("mail", tiny / which, fields(), {"from": which}), which))

    threads = [threading.Thread(target=publish, args=(which,)) for which in "ababab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = Registry(bucket, tmp_path)
    assert sorted(ref.version for ref, _ in found) == [1, 2, 3, 4, 5, 6]
    assert len(registry.list()) == 6
    for ref, which in found:
        weights = (registry.open_local(ref) / "adapter_model.safetensors").read_bytes()
        assert weights == (tiny / which / "adapter_model.safetensors").read_bytes()


def test_a_number_that_a_publisher_left_behind_is_passed_over(bucket: str, tiny: Path) -> None:
    registry = Registry(bucket)
    registry._fs.pipe_file(f"{registry._base}/mail/1/claim.json", b"{}")
    assert registry.publish("mail", tiny / "a", fields(), {}) == AdapterRef("mail", 2)
    assert registry.list() == [AdapterRef("mail", 2)]


def test_a_bucket_that_is_not_there_is_said_so(bucket: str) -> None:
    with pytest.raises((RegistryUnreachable, UnknownAdapter), match="registry"):
        Registry("s3://no-such-bucket-anywhere/adapters").resolve("mail")


def test_a_worker_serves_an_adapter_from_a_bucket(bucket: str, tiny: Path, tmp_path: Path) -> None:
    base = base_model.load(str(tiny / "model"), tmp_path)
    Registry(bucket).publish("mail", tiny / "a", fields(base.digest), {})
    prompt = tuple(base.tokenizer.encode("where is my order", add_special_tokens=False))

    async def run() -> list[int]:
        worker = Worker(base, Registry(bucket, tmp_path / "cache"), WorkerSettings())
        await worker.start()
        items = [item async for item in worker.submit(Job(prompt, Sampling(8), "mail/latest"))]
        await worker.stop()
        return [item.id for item in items if isinstance(item, TokenOut)]

    tokens = asyncio.run(run())
    plain: Any = LlamaForCausalLM.from_pretrained(tiny / "model").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = PeftModel.from_pretrained(plain, str(tiny / "a")).eval()
    ids = list(prompt)
    with torch.no_grad():
        for token in tokens:
            assert token == int(adapted(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
