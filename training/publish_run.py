"""From a run to a version in the registry: every gate asked, the outcome written down, then the files put there.

A straight line over `servers`, `publish`, `parity`, `review_gate`, `terms` and `gates`; decides nothing itself. What the running
server is asked about lies in the registry under a name of its own meanwhile, and is taken away again.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router import policy_file
from router.home import Home
from serving.registry import AdapterRef, ManifestFields, Registry
from training import gates, lora, parity, publish, review_gate, servers, terms
from training.commands import open_base_model
from training.dataset import Dataset
from training.encode import answer_limit
from training.errors import DataError, PublishRefused
from training.evaluate_command import open_origin
from training.gates import Conclusion, Gate
from training.parity_command import record
from training.predict import ModelPredictor


@dataclass(frozen=True, slots=True)
class Server:
    """A running server that is asked before publishing."""

    url: str
    dialect: parity.Dialect
    served_as: str | None
    """What it calls the run's adapter already; None puts a candidate into the registry that it reads."""
    adapter_source: str | None
    limits: parity.Limits


@dataclass(frozen=True, slots=True)
class Asked:
    """What the caller wants, read and checked."""

    run: Path
    place: Home
    policy: Path | None
    name: str | None
    target: servers.Server | None
    """Kind of server that it is published for; None: any."""
    rows: int
    force: str | None
    register: terms.Register
    signature: terms.Signature | None
    teachers: tuple[str, ...]
    """Whose answers they are, where rows do not say."""
    database: str
    reviews: review_gate.Limits
    server: Server | None


@dataclass(frozen=True, slots=True)
class Material:
    """What all gates look at, loaded once."""

    origin: dict[str, Any]
    dataset: Dataset
    evaluation: dict[str, Any]
    teachers: tuple[str, ...]
    licence: str | None
    """What the base model's own card says."""
    num_layers: int
    width: int
    student: ModelPredictor
    base_answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """All gates with what lineage and card need."""

    conclusion: Conclusion
    sources: publish.Sources
    material: Material


Tell = Callable[[str, int, int, float | None], None]
"""Hears what is asked, how many rows of it are done, of how many."""


def _counting(phase: str, total: int, tell: Tell) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(phase, done, total, None)

    return count


def check(asked: Asked, tell: Tell = lambda phase, done, total, loss: None) -> Checked:
    """Ask every gate; RUN/evaluation/gates.json has the outcome, also of a run that is not published.

    Raises:
        DataError: the run is not whole, or the running server does not answer.
        PolicyError: the policy does not hold.
        PublishRefused: the policy would have the template served wrongly.
    """
    material = _material(asked, tell)
    rows = len(publish.held_out(material.dataset, asked.rows))
    found = terms.judge(
        asked.register, material.teachers, material.origin["base_model"], material.licence
    )
    wrong = servers.lint(asked.run / "adapter", material.num_layers, asked.target)
    lines = [_lint(wrong, asked.target)]
    measured = None
    if not wrong:  # what cannot be served need not be asked
        reloaded = publish.reload_check(
            material.dataset, material.student, material.base_answers, asked.rows, publish.fitted_share(asked.run),
            _counting("the reloaded student", rows, tell),
        )  # fmt: skip
        lines += reloaded.gates()
        measured, of_server = _through_server(asked, material, tell)
        lines += of_server
    lines += gates.of_evaluation(material.evaluation)
    reviews = review_gate.read(asked.database, material.dataset.info.task)
    lines += review_gate.gates(reviews, material.dataset, material.student, asked.reviews)
    lines += terms.gates(found, asked.signature)
    sources = publish.Sources(
        material.origin, terms.record(found, asked.signature), measured, asked.force
    )
    lines.append(_precision(sources.precision, asked.target))
    conclusion = gates.conclude(lines)
    written = {"forced": asked.force, **asdict(conclusion)}
    (asked.run / "evaluation" / "gates.json").write_text(json.dumps(written, indent=2))
    return Checked(conclusion, sources, material)


def put(asked: Asked, checked: Checked) -> AdapterRef:
    """Model card, servers' profiles and lineage beside the weights, and all of it into the registry.

    Raises:
        PublishRefused: a gate said no.
        RegistryError: the folder is not a whole adapter.
    """
    gates.enforce(checked.conclusion, asked.force)
    material, folder = checked.material, asked.run / "adapter"
    task = asked.name or material.dataset.info.task
    card = publish.model_card(
        task, material.dataset, material.evaluation, checked.conclusion, checked.sources
    )
    (folder / "README.md").write_text(card)
    profiles = _profiles(folder, task, material, checked.sources.precision)
    (folder / servers.FILE).write_text(servers.dump(profiles))
    history = publish.lineage(
        asked.run, material.dataset, checked.conclusion, checked.sources, material.teachers
    )
    return Registry(asked.place.adapters).publish(task, folder, _fields(folder, material), history)


def _material(asked: Asked, tell: Tell) -> Material:
    origin = open_origin(asked.run, "base_model", "base_model_digest")
    dataset = Dataset.load(Path(origin["dataset"]))
    evaluation = publish.load_evaluation(asked.run)
    if asked.policy is not None:  # before the base model is loaded: it takes a second to know
        route = policy_file.load(asked.policy).policy.routes.get(dataset.info.task)
        missing = publish.template_missing(asked.policy, dataset.info, route, asked.target)
        if missing:
            raise PublishRefused(missing)
    if not (asked.run / "adapter" / "adapter_config.json").exists():
        raise DataError(f"{asked.run}: no adapter in it; allowed: a run folder")
    base = open_base_model(origin["model"], asked.place)
    config = base.model.config
    layers = len(lora.decoder_of(base.model).layers)
    count = _counting("the base model", len(publish.held_out(dataset, asked.rows)), tell)
    student, plain = publish.reloaded(asked.run, base, dataset, asked.rows, count)
    return Material(
        origin, dataset, evaluation, teachers_of(origin, dataset, asked.teachers), terms.licence_of(Path(base.path)),
        layers, config.hidden_size, student, tuple(plain),
    )  # fmt: skip


def teachers_of(origin: dict[str, Any], dataset: Dataset, named: Sequence[str]) -> tuple[str, ...]:
    """Every teacher of the lineage: of the dataset, of its stages' own ones, and of the runs that this one started from.

    `terms.NOT_NAMED` is among them where rows out of files may have another teacher, and nobody has named it.
    """
    found = {*dataset.info.teachers, *named}
    of_files = any(e.teacher and e.source.startswith("file:") for e in dataset.examples)
    of_traffic = any(e.teacher and e.source == "traffic" for e in dataset.examples)
    is_open = any(e.teacher for e in dataset.examples) and not dataset.info.teachers
    if not named and (is_open or (of_files and of_traffic)):
        found.add(terms.NOT_NAMED)
    for other in origin.get("stage_datasets", ()):
        found |= set(teachers_of({}, Dataset.load(Path(other)), named))
    start = origin.get("start")
    if start:
        earlier = open_origin(Path(start))
        found |= set(teachers_of(earlier, Dataset.load(Path(earlier["dataset"])), named))
    return tuple(sorted(found))


def _lint(wrong: Sequence[str], target: servers.Server | None) -> Gate:
    where = target or ", ".join(servers.SERVERS)
    figure = "; ".join(wrong) or f"nothing that {where} would serve wrongly"
    return Gate("serving lint", gates.outcome(not wrong), figure, "nothing", "always")


def _precision(trained_in: str, target: servers.Server | None) -> Gate:
    """Warns; no precision is refused."""
    name, limit = "precision trained = precision served", "the same"
    served = {one: servers.SERVED_IN[one] for one in servers.SERVERS}
    if target is None:
        told = ", ".join(f"{one} {precision}" for one, precision in served.items())
        figure = f"trained over {trained_in} weights; by default served in: {told}; say --server"
        return Gate(name, "not measured", figure, limit, "never")
    differs = servers.precision_warning(target, trained_in, served[target])
    figure = differs or f"trained over {trained_in} weights, served in {served[target]}"
    return Gate(name, gates.outcome(differs is None), figure, limit, "never")


def _through_server(
    asked: Asked, material: Material, tell: Tell
) -> tuple[dict[str, Any] | None, list[Gate]]:
    """Parity through the running server; a line that says so where there is none."""
    server = asked.server
    if server is None:
        none = "no running server was named (--server-url)"
        return None, [
            Gate("parity through a server", "not measured", none, "same prompts, same answers", "always")
        ]  # fmt: skip
    rows = publish.held_out(material.dataset, asked.rows)
    wanted = parity.expected(rows, material.student, material.base_answers)
    with _served(asked, material, server) as adapter:
        target = parity.Target(server.url, adapter, server.dialect, server.adapter_source)
        found = parity.through(
            target, wanted, material.student.max_new_tokens,
            lambda done: tell("the running server", done, len(wanted), None),
        )  # fmt: skip
    return record(asked.run, target, server.limits, found), found.gates(server.limits)


@contextlib.contextmanager
def _served(asked: Asked, material: Material, server: Server) -> Iterator[str]:
    """What the server calls the adapter. A candidate's name is made of its weights: servers keep an id's weights for good."""
    if server.served_as is not None:
        yield server.served_as
        return
    folder = asked.run / "adapter"
    weights = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    name = f"{asked.name or material.dataset.info.task}.candidate-{weights[:12]}"
    ref = Registry(asked.place.adapters).publish(name, folder, _fields(folder, material), {})
    try:
        yield ref.id
    finally:
        shutil.rmtree(asked.place.adapters / name)


def _profiles(
    folder: Path, task: str, material: Material, trained_in: str
) -> dict[servers.Server, servers.Profile]:
    """Of every server that serves this adapter rightly."""
    config = servers.read_config(folder)
    limit = answer_limit(material.dataset.examples, material.student.tokenizer)
    return {
        one: servers.profile(
            one, config, adapter_id=f"{task}/{servers.VERSION}", base_model=material.origin["base_model"],
            width=material.width, trained_in=trained_in, max_new_tokens=limit,
        )
        for one in servers.SERVERS
        if not servers.lint(folder, material.num_layers, one)
    }  # fmt: skip


def _fields(folder: Path, material: Material) -> ManifestFields:
    """What the registry's manifest says of the adapter."""
    config = servers.read_config(folder)
    info = material.dataset.info
    student = next(x for x in material.evaluation["tests"][0]["lines"] if x["name"] == "student")
    return ManifestFields(
        base_model=material.origin["base_model"],
        base_model_digest=material.origin["base_model_digest"],
        rank=config["r"],
        alpha=config["lora_alpha"],
        target_modules=tuple(sorted(config["target_modules"])),
        prompt=info.prompt,
        max_input_chars=info.max_input_chars,
        route=info.task,
        answer=info.answer,
        metrics={"test_accuracy": student["figures"]["accuracy"]["share"]},
    )
