"""`graduate train publish`: a run's checks, its verdict, and its place in the registry."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from router.home import Home
    from serving.registry import AdapterRef
    from training.dataset import Dataset
    from training.publish import Gate, Server

SERVERS = ("lorax", "vllm", "graduate")


@dataclass(frozen=True, slots=True)
class Said:
    """What the caller says that no check can find out."""

    name: str | None
    force: str | None
    terms: str | None


def publish(
    run: Annotated[Path | None, typer.Option(help="Run folder; default: the newest one.")] = None,
    home: Annotated[Path, typer.Option(help="State folder; the registry is HOME/adapters.")] = Path(
        ".graduate"
    ),
    name: Annotated[
        str | None, typer.Option(help="Name in the registry; default: the route's.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy whose route will ask the student; default HOME/policy.yaml."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help=f"What serves it: {', '.join(SERVERS)}; default: any of them may."),
    ] = None,
    force: Annotated[
        str | None,
        typer.Option(
            help="Publish although the evaluation says `do not graduate`; the reason is recorded."
        ),
    ] = None,
    terms: Annotated[
        str | None,
        typer.Option(
            help="What the teacher's terms of service say of training on its answers, and who read them; recorded."
        ),
    ] = None,
    parity_rows: Annotated[
        int, typer.Option(help="Held-out rows that the reloaded adapter is asked.", min=1)
    ] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check a run and put it into the registry as the next version of its adapter.

    Example: graduate train publish --run .graduate/runs/tickets-20261124-101500
    """
    from router.home import Home
    from training.commands import newest, operator_errors

    place = Home(home)
    with operator_errors():
        target = _server(server)
        folder = run or newest(place.runs, "*-*", "run")
        verdict, reference = _checked(
            folder, place, policy or _own(place), target, parity_rows, Said(name, force, terms)
        )
    _show(verdict, reference, terms, as_json)


def _own(place: "Home") -> Path | None:
    """The home's policy; None where it is elsewhere, as on a machine that only trains."""
    return place.policy if place.policy.exists() else None


def _server(said: str | None) -> "Server | None":
    """The server that the caller names.

    Raises:
        ConfigError: there is no such server.
    """
    from typing import cast

    from training.errors import ConfigError

    if said is not None and said not in SERVERS:
        raise ConfigError(f"--server {said!r}: allowed: {', '.join(SERVERS)}")
    return cast("Server | None", said)


def _checked(
    run: Path, place: "Home", policy: Path | None, server: "Server | None", parity_rows: int, said: Said
) -> "tuple[Gate, AdapterRef]":  # fmt: skip
    """Lint, parity and gates, then the registry.

    Raises:
        DataError: the run has no evaluation.
        PolicyError: the policy does not hold.
        PublishRefused: a check said no.
    """
    from router import policy_file
    from serving.registry import Registry
    from training import publish as core
    from training.dataset import Dataset
    from training.errors import PublishRefused
    from training.evaluate_command import open_origin

    origin = open_origin(run)
    dataset = Dataset.load(Path(origin["dataset"]))
    evaluation = core.load_evaluation(run)
    if policy is not None:  # before the base model is loaded: it takes a second to know
        route = policy_file.load(policy).policy.routes.get(dataset.info.task)
        missing = core.template_missing(policy, dataset.info, route, server)
        if missing:
            raise PublishRefused(missing)
    wrong, parity = _serving_checks(run, place, origin, dataset, parity_rows)
    verdict = core.gate(evaluation)
    core.enforce(wrong, parity, verdict, said.force)
    task = said.name or dataset.info.task
    card = core.model_card(task, dataset, origin, evaluation, verdict, said.terms)
    (run / "adapter" / "README.md").write_text(card)
    history = core.lineage(run, origin, dataset, verdict, forced=said.force, terms=said.terms)
    fields = _fields(run, origin, dataset, evaluation)
    return verdict, Registry(place.adapters).publish(task, run / "adapter", fields, history)


def _serving_checks(
    run: Path, place: "Home", origin: dict[str, Any], dataset: "Dataset", rows: int
) -> tuple[list[str], Any]:
    """What is wrong with the adapter's files, and the reloaded adapter's answers beside the base model's."""
    from training import lora
    from training import publish as core
    from training.commands import open_base_model

    base = open_base_model(origin["model"], place)
    wrong = core.lint(run / "adapter", len(lora.decoder_of(base.model).layers))
    student, base_answers = core.reloaded(run, base, dataset, rows)
    return wrong, core.parity(dataset, student, base_answers, rows)


def _fields(
    run: Path, origin: dict[str, Any], dataset: "Dataset", evaluation: dict[str, Any]
) -> Any:
    """What the registry's manifest says of the adapter."""
    from serving.registry import ManifestFields

    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    student = next(x for x in evaluation["tests"][0]["lines"] if x["name"] == "student")
    return ManifestFields(
        base_model=origin["base_model"],
        base_model_digest=origin["base_model_digest"],
        rank=config["r"],
        alpha=config["lora_alpha"],
        target_modules=tuple(sorted(config["target_modules"])),
        prompt=dataset.info.prompt,
        max_input_chars=dataset.info.max_input_chars,
        route=dataset.info.task,
        answer=dataset.info.answer,
        metrics={"test_accuracy": student["figures"]["accuracy"]["share"]},
    )


def _show(verdict: "Gate", reference: "AdapterRef", terms: str | None, as_json: bool) -> None:
    from training.commands import out
    from training.publish import NO_TERMS

    if as_json:
        found = {
            "adapter": reference.id,
            "verdict": verdict.verdict,
            "reasons": list(verdict.reasons),
        }
        typer.echo(json.dumps(found))
        return
    out.print(
        f"published [bold]{reference.id}[/] · verdict: [bold]{verdict.verdict}[/]", highlight=False
    )
    for reason in verdict.reasons:
        out.print(f"• {reason}", highlight=False)
    out.print(f"• teacher's terms of service: {terms or NO_TERMS}", highlight=False)
    then = ", then `mode: hybrid` with cascade.min_confidence from the evaluation"
    out.print(
        f"next: `mode: dark_launch` with `student: {{adapter: {reference.name}, version: {reference.version}}}` in the policy"
        + ("" if verdict.verdict == "publish" else then),
        highlight=False,
    )


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="publish")(publish)
