"""`graduate train publish`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def publish(
    run: Annotated[Path | None, typer.Option(help="Run folder; default: the newest one.")] = None,
    home: Annotated[Path, typer.Option(help="State folder; the registry is HOME/adapters.")] = Path(
        ".graduate"
    ),
    name: Annotated[
        str | None, typer.Option(help="Name in the registry; default: the route's.")
    ] = None,
    force: Annotated[
        str | None,
        typer.Option(
            help="Publish although the evaluation says `do not graduate`; the reason is recorded."
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
    from serving.registry import ManifestFields, Registry
    from training import lora
    from training import publish as core
    from training.commands import newest, open_base_model, operator_errors, out
    from training.dataset import Dataset
    from training.evaluate_command import open_origin
    from training.predict import ModelPredictor

    place = Home(home)
    with operator_errors():
        folder = run or newest(place.runs, "*-*", "run")
        origin = open_origin(folder)
        dataset = Dataset.load(Path(origin["dataset"]))
        evaluation = core.load_evaluation(folder)
        base = open_base_model(origin["model"], place)
        layers = len(lora.decoder_of(base.model).layers)
        wrong = core.lint(folder / "adapter", layers)
        info = dataset.info
        settings = (base.tokenizer, info.prompt, info.max_input_chars)
        plain = ModelPredictor("base", base.model, *settings, max_new_tokens=24)
        base_answers = [p.text for p in plain.predict(core.held_out(dataset, parity_rows))]
        reloaded = ModelPredictor(
            "student", lora.load_adapter(base.model, folder / "adapter"), *settings
        )
        checked = core.parity(dataset, reloaded, base_answers, parity_rows)
        verdict = core.gate(evaluation)
        core.enforce(wrong, checked, verdict, force)
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        card = core.model_card(name or info.task, dataset, origin, evaluation, verdict)
        (folder / "adapter" / "README.md").write_text(card)
        student = next(x for x in evaluation["tests"][0]["lines"] if x["name"] == "student")
        fields = ManifestFields(
            base_model=origin["base_model"],
            base_model_digest=origin["base_model_digest"],
            rank=config["r"],
            alpha=config["lora_alpha"],
            target_modules=tuple(sorted(config["target_modules"])),
            prompt=info.prompt,
            max_input_chars=info.max_input_chars,
            route=info.task,
            answer=info.answer,
            metrics={"test_accuracy": student["figures"]["accuracy"]["share"]},
        )
        history = core.lineage(folder, origin, dataset, verdict, force)
        reference = Registry(place.adapters).publish(
            name or info.task, folder / "adapter", fields, history
        )
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
    mode = "dark_launch" if verdict.verdict == "publish" else "hybrid"
    out.print(
        f"next: `mode: dark_launch` with `student: {{adapter: {reference.name}, version: {reference.version}}}` in the policy"
        + (
            ""
            if mode == "dark_launch"
            else ", then `mode: hybrid` with cascade.min_confidence from the evaluation"
        ),
        highlight=False,
    )


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="publish")(publish)
