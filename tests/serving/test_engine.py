"""The engine against PEFT: every row of a mixed batch gives what its adapter gives alone, token for token."""

import asyncio
import json
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
)

from serving import base_model
from serving.decoder import Decoder
from serving.engine import Emitted
from serving.errors import (
    AdapterFailed,
    GenerationFailed,
    InvalidRequest,
    OperatorError,
    Overloaded,
)
from serving.generation import Finished, Job, Sampling, TokenOut
from serving.lora import load_lora
from serving.registry import BrokenAdapter, ManifestFields, Registry
from tests.tiny import random_adapter, tiny_model

with warnings.catch_warnings():
    # llguidance's torch part makes torch import what torch deprecates.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    from serving.worker import Worker, WorkerSettings

MODULES = (
    ["q_proj", "v_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj"],
    ["gate_proj", "up_proj", "down_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


class Place:
    """A tiny base model, four adapters of different ranks and modules in a registry, and the same in PEFT."""

    def __init__(self, root: Path) -> None:
        tiny_model(root / "model", num_layers=3)
        self.root = root
        self.base = base_model.load(str(root / "model"), root / "cache")
        self.registry = Registry(root / "registry")
        self.folders: dict[str, Path] = {}
        self.references: dict[str | None, Any] = {}
        for number, modules in enumerate(MODULES):
            rank = (4, 8)[number % 2]
            folder = random_adapter(root / "model", root / f"a{number}", number, modules, rank)
            ref = self.registry.publish(f"a{number}", folder, self.fields(rank, modules), {})
            self.folders[ref.id] = folder

    def fields(self, rank: int, modules: list[str], digest: str | None = None) -> ManifestFields:
        return ManifestFields(
            base_model=self.base.id,
            base_model_digest=digest or self.base.digest,
            rank=rank,
            alpha=16,
            target_modules=tuple(modules),
        )

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.base.tokenizer.encode(text, add_special_tokens=False))

    def reference(self, adapter: str | None) -> Any:
        """The adapter in PEFT, loaded once."""
        if adapter not in self.references:
            model: Any = LlamaForCausalLM.from_pretrained(self.root / "model").eval()
            if adapter is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)
                    model = PeftModel.from_pretrained(model, str(self.folders[adapter])).eval()
            self.references[adapter] = model
        return self.references[adapter]

    @torch.no_grad()
    def alone(self, adapter: str | None, prompt: tuple[int, ...], count: int) -> list[int]:
        """Greedy tokens of one adapter alone, by transformers and PEFT."""
        model = self.reference(adapter)
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == self.base.tokenizer.eos_token_id:
                break
        return ids[len(prompt) :]

    def size(self, *adapters: str) -> int:
        """Bytes that adapters take in memory."""
        places = Decoder(base_model.load(self.base.path, self.root / "cache").model).places()
        return sum(load_lora(a, self.folders[a], places).num_bytes for a in adapters)

    def worker(self, **settings: Any) -> Worker:
        fresh = base_model.load_weights(str(self.root / "model"), self.root / "cache")
        return Worker(fresh, self.registry, WorkerSettings(**settings))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("engine"))


async def whole(worker: Worker, job: Job) -> tuple[list[TokenOut], Finished]:
    items = [item async for item in worker.submit(job)]
    assert isinstance(items[-1], Finished)
    return [item for item in items if isinstance(item, TokenOut)], items[-1]


def job(place: Place, text: str, adapter: str | None, count: int = 12, **more: Any) -> Job:
    return Job(place.ids(text), Sampling(count, **more), adapter)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_of_a_random_mixed_batch_give_what_their_adapter_gives_alone(
    place: Place, seed: int
) -> None:
    draw = random.Random(seed)
    words = [
        "hello",
        "world",
        "where",
        "is",
        "my",
        "order",
        "I",
        "want",
        "a",
        "refund",
        "now",
        "please",
        "ticket",
    ]
    asked = [
        (
            draw.choice([None, *place.folders]),
            " ".join(draw.choices(words, k=draw.randint(1, 25))),
            draw.randint(1, 14),
        )
        for _ in range(12)
    ]

    async def run() -> list[list[int]]:
        worker = place.worker(max_batch=5, max_prefill_tokens=40)
        await worker.start()
        try:
            jobs = [whole(worker, job(place, text, a, n)) for a, text, n in asked]
            return [[t.id for t in tokens] for tokens, _ in await asyncio.gather(*jobs)]
        finally:
            await worker.stop()

    found = asyncio.run(run())
    wanted = [place.alone(a, place.ids(text), n) for a, text, n in asked]
    assert found == wanted


def test_a_whole_reply_comes_at_once_and_is_the_streamed_one(place: Place) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        streamed = job(place, "where is my order", "a1/1", 9, ignore_eos=True)
        found = [await whole(worker, j) for j in (streamed, replace(streamed, at_once=True))]
        assert [t.id for t in found[0][0]] == [t.id for t in found[1][0]]
        assert len(found[0][0]) == 9
        assert found[0][1].text == found[1][1].text
        stream = worker.submit(replace(streamed, at_once=True))
        await anext(stream)
        assert worker.num_running == 0  # its first item comes when it has ended
        await worker.stop()

    asyncio.run(run())


def test_adapters_really_differ(place: Place) -> None:
    prompt = place.ids("where is my order")
    answers = {tuple(place.alone(a, prompt, 8)) for a in [None, *place.folders]}
    assert len(answers) == 5


def test_a_shared_beginning_is_reused_and_changes_nothing(place: Place) -> None:
    shared = "please sort this ticket and answer with the label of it, one word only: "
    texts = [shared + tail for tail in ("refund", "where is my order", "hello world")]

    async def run() -> list[list[int]]:
        worker = place.worker()
        await worker.start()
        found = [await whole(worker, job(place, text, "a1/1")) for text in texts]
        await worker.stop()
        assert worker._engine._prefixes.longest("a1/1", place.ids(shared + "another")) is not None
        return [[t.id for t in tokens] for tokens, _ in found]

    assert asyncio.run(run()) == [place.alone("a1/1", place.ids(t), 12) for t in texts]


def test_logprobs_are_those_of_the_model(place: Place) -> None:
    async def run() -> list[TokenOut]:
        worker = place.worker()
        await worker.start()
        tokens, _ = await whole(worker, job(place, "hello", None, 4, num_alternatives=3))
        await worker.stop()
        return tokens

    tokens = asyncio.run(run())
    model = LlamaForCausalLM.from_pretrained(place.root / "model").eval()
    ids = list(place.ids("hello"))
    for token in tokens:
        with torch.no_grad():
            wanted = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
        assert token.logprob == pytest.approx(float(wanted[token.id]), abs=1e-4)
        assert [a[0] for a in token.alternatives] == wanted.topk(3).indices.tolist()
        ids.append(token.id)


def test_a_step_that_fails_fails_its_rows_and_nothing_else(place: Place) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        decoder = worker._engine.decoder
        step = decoder.step

        def broken(*arguments: Any) -> torch.Tensor:
            raise RuntimeError("injected")

        decoder.step = broken  # type: ignore[method-assign]
        with pytest.raises(GenerationFailed, match="injected"):
            await whole(worker, job(place, "hello", "a0/1"))
        decoder.step = step  # type: ignore[method-assign]
        for adapter in (None, "a1/1", "a0/1"):
            tokens, _ = await whole(worker, job(place, "hello", adapter))
            assert [t.id for t in tokens] == place.alone(adapter, place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())


def test_a_caller_that_leaves_frees_its_row_and_others_go_on(place: Place) -> None:
    async def run() -> None:
        worker = place.worker(max_batch=2)
        await worker.start()
        leaving = worker.submit(job(place, "hello world", "a3/1", 400, ignore_eos=True))
        await anext(aiter(leaving))
        staying = asyncio.create_task(whole(worker, job(place, "refund", "a2/1", 20)))
        await leaving.aclose()  # type: ignore[attr-defined]
        tokens, _ = await staying
        assert [t.id for t in tokens] == place.alone("a2/1", place.ids("refund"), 20)
        for _ in range(100):
            if worker.num_running == 0:
                break
            await asyncio.sleep(0.01)
        assert worker.num_running == 0
        await worker.stop()

    asyncio.run(run())


def test_stop_sequences_end_the_text_and_are_in_it(place: Place) -> None:
    async def run() -> Finished:
        worker = place.worker()
        await worker.start()
        _, free = await whole(worker, job(place, "hello", None, 20))
        stop = free.text[2:4]
        _, stopped = await whole(worker, job(place, "hello", None, 20, stop=(stop,)))
        assert stopped.reason == "stop_sequence"
        assert stopped.text == free.text[: free.text.index(stop) + len(stop)]
        await worker.stop()
        return stopped

    asyncio.run(run())


def test_a_seed_gives_the_same_text_again(place: Place) -> None:
    async def run() -> list[str]:
        worker = place.worker()
        await worker.start()
        more = {"do_sample": True, "temperature": 1.5}
        texts = [
            (await whole(worker, job(place, "hello", None, 12, seed=seed, **more)))[1].text
            for seed in (5, 5, 6)
        ]
        await worker.stop()
        return texts

    first, again, other = asyncio.run(run())
    assert first == again
    assert first != other


def test_a_schema_and_a_choice_are_kept(place: Place) -> None:
    async def run() -> tuple[str, str]:
        worker = place.worker()
        await worker.start()
        schema = '{"type":"object","properties":{"a":{"enum":[1,2]}},"required":["a"],"additionalProperties":false}'
        _, one = await whole(worker, job(place, "x", "a0/1", 60, json_schema=schema))
        _, two = await whole(worker, job(place, "x", "a0/1", 60, choices=("refund", "order")))
        await worker.stop()
        return one.text, two.text

    as_json, choice = asyncio.run(run())
    assert as_json.replace(" ", "").replace("\n", "") in ('{"a":1}', '{"a":2}')
    assert choice in ("refund", "order")


def test_a_choice_that_no_tokens_write_is_refused_and_others_go_on(place: Place) -> None:
    """The tiny vocabulary has ASCII alone: after the first letters nothing would be allowed."""

    async def run() -> None:
        worker = place.worker()
        await worker.start()
        with pytest.raises(InvalidRequest, match="choice 'café' cannot be written"):
            await whole(worker, job(place, "x", None, 9, choices=("tea", "café")))
        _, end = await whole(worker, job(place, "x", None, 9, choices=("tea",)))
        assert end.text == "tea"
        await worker.stop()

    asyncio.run(run())


def test_an_end_token_that_is_ignored_is_a_token_like_others(place: Place) -> None:
    """LoRAX's `ignore_eos_token`: generation goes on after it; it is not forbidden."""
    engine = place.worker()._engine
    eos = place.base.tokenizer.eos_token_id
    row = engine.start(job(place, "hello", None, 3, ignore_eos=True), None, None, 0.0)
    engine.add(row)
    step = engine.decoder.step

    def always_eos(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        logits = step(ids, *rest).clone()
        logits[:, eos] = 1e4
        return logits

    engine.decoder.step = always_eos  # type: ignore[method-assign]
    ends = [engine.step()[0] for _ in range(3)]
    assert row.generated == [eos] * 3
    assert isinstance(ends[-1], Emitted)
    assert ends[-1].finished is not None
    assert (ends[-1].finished.reason, ends[-1].finished.text) == ("length", "")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        pytest.param("nobody/1", "not in the registry", id="unknown"),
        pytest.param("a0/99", "not in the registry", id="unknown version"),
        pytest.param("../a0", "allowed: NAME", id="outside the registry"),
        pytest.param("foreign/1", "was made for base model", id="made for another base model"),
        pytest.param("broken/1", "not a whole safetensors file", id="cut off"),
        pytest.param("wide/1", "no place for", id="more layers than the base model"),
        pytest.param("swapped/1", "its manifest says", id="weights that were not published"),
        pytest.param("rankless/1", "r = None; allowed", id="no rank"),
        pytest.param("dtype/1", "cannot be read: .*NO_SUCH", id="an error nobody thought of"),
    ],
)
def test_a_bad_adapter_fails_with_its_reason(
    place: Place, tmp_path: Path, adapter: str, message: str
) -> None:
    folder = place.folders["a0/1"]
    if adapter == "foreign/1":
        place.registry.publish("foreign", folder, place.fields(4, MODULES[0], "0" * 16), {})
    if adapter == "broken/1":
        ref = place.registry.publish("broken", folder, place.fields(4, MODULES[0]), {})
        weights = place.registry.open_local(ref) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    if adapter == "swapped/1":
        ref = place.registry.publish("swapped", folder, place.fields(4, MODULES[0]), {})
        weights = place.registry.open_local(ref) / "adapter_model.safetensors"
        save_file({n: t + 1 for n, t in load_file(weights).items()}, weights)
    if adapter == "rankless/1":
        ref = place.registry.publish("rankless", folder, place.fields(4, MODULES[0]), {})
        config = place.registry.open_local(ref) / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "r": None}))
    if adapter == "dtype/1":
        ref = place.registry.publish("dtype", folder, place.fields(4, MODULES[0]), {})
        weights = place.registry.open_local(ref) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"NO_SUCH"', 1))
        data = weights.read_bytes()
        weights.write_bytes(
            (int.from_bytes(data[:8], "little") + 4).to_bytes(8, "little") + data[8:]
        )
    if adapter == "wide/1":
        tiny_model(tmp_path / "wide", num_layers=5)
        wide = random_adapter(tmp_path / "wide", tmp_path / "w", 9, MODULES[0])
        place.registry.publish("wide", wide, place.fields(4, MODULES[0]), {})

    async def run() -> None:
        worker = place.worker()
        await worker.start()
        for _ in range(2):  # the second time from memory, without another load
            with pytest.raises(AdapterFailed, match=message):
                await whole(worker, job(place, "hello", adapter))
        tokens, _ = await whole(worker, job(place, "hello", "a1/1"))
        assert [t.id for t in tokens] == place.alone("a1/1", place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())


def changed(place: Place, folder: Path, config: dict[str, Any], fill: float | None = None) -> Path:
    """A copy of adapter a3 with another config, and values of one tensor replaced."""
    shutil.copytree(place.folders["a3/1"], folder)
    known = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**known, **config}))
    if fill is not None:
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, tensor in tensors.items():
            if "layers.0" in name and "v_proj.lora_B" in name:
                tensor.fill_(fill)
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_are_not_finite_are_refused(
    place: Place, tmp_path: Path, value: float
) -> None:
    folder = changed(place, tmp_path / "a", {}, value)
    decoder = place.worker()._engine.decoder
    with pytest.raises(BrokenAdapter, match=r"v_proj\.lora_B.* not finite"):
        load_lora("bad/1", folder, decoder.places())


@pytest.mark.parametrize("leaves", ["the last row", "a row before"])
def test_a_row_reads_nothing_of_the_one_that_had_its_number(place: Place, leaves: str) -> None:
    """Values of finite weights can overflow to NaN too: what a row leaves behind must not reach the next one."""
    engine = place.worker()._engine
    keep = engine.start(job(place, "hello", None, 40, ignore_eos=True), None, None, 0.0)
    gone = engine.start(job(place, "where is my order " * 6, None, 40), None, None, 0.0)
    order = [keep, gone] if leaves == "the last row" else [gone, keep]
    for row in order:
        engine.add(row)
    engine.step()
    for number in range(engine._cache.num_rows):
        if number < 2 and order[number] is gone:
            for layer in range(engine.decoder.num_layers):
                engine._cache.layer(layer)[number, : gone.cached, 1] = float("nan")
    engine.remove(gone)
    longer = engine.start(job(place, "I want a refund " * 9, None, 40), None, None, 0.0)
    short = engine.start(job(place, "refund", None, 40), None, None, 0.0)
    for row in (short, longer):
        engine.add(row)
    for _ in range(6):
        engine.step()
    assert short.generated == place.alone(None, place.ids("refund"), 6)
    assert keep.generated[:7] == place.alone(None, place.ids("hello"), 7)


def test_limits_are_refused_with_numbers(place: Place) -> None:
    async def run() -> None:
        worker = place.worker(max_batch=1, queue=1, max_total_tokens=64)
        await worker.start()
        with pytest.raises(InvalidRequest, match="allowed: 64 together"):
            await whole(worker, job(place, "hello", None, 64))
        with pytest.raises(InvalidRequest, match="no tokens"):
            await whole(worker, Job((), Sampling(4)))
        long = [worker.submit(job(place, "hello", None, 50, ignore_eos=True)) for _ in range(2)]
        first = asyncio.create_task(anext(aiter(long[0])))
        await first
        second = asyncio.create_task(anext(aiter(long[1])))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await whole(worker, job(place, "hello", None, 4))
        await long[0].aclose()  # type: ignore[attr-defined]
        await second
        await long[1].aclose()  # type: ignore[attr-defined]
        await worker.stop()

    asyncio.run(run())


def test_adapters_over_the_memory_budget_are_evicted_least_recently_used_first(
    place: Place,
) -> None:
    async def run() -> None:
        worker = place.worker(adapter_memory_bytes=place.size("a0/1", "a1/1", "a3/1"))
        await worker.start()
        for adapter in ("a0/1", "a2/1", "a0/1", "a1/1", "a3/1"):
            tokens, _ = await whole(worker, job(place, "hello", adapter, 6))
            assert [t.id for t in tokens] == place.alone(adapter, place.ids("hello"), 6)
        assert "a2/1" not in worker.resident()
        assert worker.resident()[-1] == "a3/1"
        await worker.stop()

    asyncio.run(run())


def test_a_full_budget_makes_requests_wait_and_starves_none(place: Place) -> None:
    """Room for one or two of four adapters, all asked for at once, two of them again and again."""

    budget = place.size("a1/1")

    async def run() -> None:
        worker = place.worker(adapter_memory_bytes=budget, max_batch=4)
        await worker.start()

        async def ask(adapter: str, count: int) -> None:
            tokens, _ = await whole(worker, job(place, "hello", adapter, count, ignore_eos=True))
            assert len(tokens) == count

        busy = [asyncio.create_task(ask(a, 20)) for _ in range(3) for a in list(place.folders)[:3]]
        load = asyncio.create_task(worker.load("a1/1"))
        await asyncio.wait_for(asyncio.gather(*busy, load), 20)
        with pytest.raises(AdapterFailed, match=f"the budget is {budget}"):
            await ask("a3/1", 1)
        await worker.stop()

    asyncio.run(run())


def test_an_adapter_gets_in_although_others_are_always_busy(place: Place) -> None:
    async def run() -> None:
        worker = place.worker(adapter_memory_bytes=place.size("a1/1"))
        await worker.start()
        is_over = asyncio.Event()

        async def keep_busy(first: int) -> None:
            count = first  # rows that never end together
            while not is_over.is_set():
                await whole(worker, job(place, "hello", "a0/1", count, ignore_eos=True))
                count = 150

        busy = [asyncio.create_task(keep_busy(first)) for first in (50, 100, 150)]
        await asyncio.sleep(0.1)
        tokens, _ = await asyncio.wait_for(whole(worker, job(place, "hello", "a1/1", 6)), 10)
        assert [t.id for t in tokens] == place.alone("a1/1", place.ids("hello"), 6)
        is_over.set()
        await asyncio.wait_for(asyncio.gather(*busy), 10)
        await worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_fail_their_row_alone(place: Place, value: float) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        bad = place.base.tokenizer.encode("x")[0]
        step = worker._engine.decoder.step

        def poisoned(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            logits = step(ids, *rest).clone()
            for i, place_ in enumerate(rest[3].tolist()):
                if int(ids[place_]) == bad:
                    logits[i, 3] = value
            return logits

        worker._engine.decoder.step = poisoned  # type: ignore[method-assign]
        good = job(place, "hello", None, 12)
        found = await asyncio.gather(
            whole(worker, good),
            whole(worker, job(place, "x", None, do_sample=True, temperature=1.0)),
            whole(worker, job(place, "x", None)),
            return_exceptions=True,
        )
        assert isinstance(found[0], tuple)
        assert [t.id for t in found[0][0]] == place.alone(None, good.prompt_ids, 12)
        assert all(isinstance(f, GenerationFailed) for f in found[1:])
        await worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (LlamaConfig, {"attention_bias": True}, "attention_bias = True"),
        (LlamaConfig, {"mlp_bias": True}, "mlp_bias = True"),
        (MistralConfig, {"sliding_window": 32}, "sliding_window = 32"),
        (MistralConfig, {"sliding_window": 64}, None),
        (MistralConfig, {"sliding_window": None}, None),
        (Qwen2Config, {"use_sliding_window": True, "sliding_window": 32}, "use_sliding_window = True"),
        (Qwen2Config, {"use_sliding_window": False, "sliding_window": 32}, None),
    ],
)  # fmt: skip
def test_a_base_model_that_would_be_computed_wrongly_is_refused(
    kind: Any, setting: dict[str, Any], message: str | None
) -> None:
    config = kind(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, **setting,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    if message is None:
        assert Decoder(model).num_layers == 1
    else:
        with pytest.raises(OperatorError, match=message):
            Decoder(model)


def test_a_worker_starts_again(place: Place) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        running = asyncio.create_task(
            whole(worker, job(place, "hello", "a0/1", 400, ignore_eos=True))
        )
        while not worker.num_running:
            await asyncio.sleep(0.01)
        await worker.stop()
        with pytest.raises(GenerationFailed, match="stopping"):
            await running
        with pytest.raises(GenerationFailed, match="does not run"):
            await worker.load("a1/1")
        await worker.start()
        tokens, _ = await whole(worker, job(place, "hello", "a1/1"))
        assert [t.id for t in tokens] == place.alone("a1/1", place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize("where", ["_admit", "evict"])
def test_an_error_between_steps_fails_who_waits_and_the_engine_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        await worker.load("a0/1")

        def broken(*arguments: Any) -> None:
            raise RuntimeError("injected")

        with monkeypatch.context() as patch:
            patch.setattr(worker if where == "_admit" else worker._adapters, where, broken)
            waits = (
                whole(worker, job(place, "hello", "a0/1"))
                if where == "_admit"
                else worker.unload("a0/1")
            )
            with pytest.raises(GenerationFailed, match="injected"):
                await asyncio.wait_for(waits, 10)
        assert worker.is_alive
        tokens, _ = await whole(worker, job(place, "hello", "a0/1"))
        assert [t.id for t in tokens] == place.alone("a0/1", place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())
