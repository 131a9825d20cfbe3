"""`graduate serving`: the student server, its adapters, and the replay teacher. Heavy imports only inside the commands."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from serving.adapters_cli import app as adapters_app
from serving.errors import OperatorError
from serving.quantities import seconds, size_bytes
from serving.settings import DRAFT_TOKENS, Precision
from serving.terminal import HomeOption, HostOption, console, fail, parsed

app = typer.Typer(
    no_args_is_help=True,
    help="Serve LoRA students on one base model; list adapters; replay a recorded teacher.",
)

app.add_typer(adapters_app, name="adapters")


@app.command()
def replay(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Recorded answers, JSON Lines.")
    ],
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8082,
    latency: Annotated[str, typer.Option(help="Time an answer takes, ±20 %.")] = "50ms",
    error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests answered with a 500.")
    ] = 0.0,
    rate_limit: Annotated[
        float, typer.Option(min=0, help="Requests per second, above them a 429; 0 is no limit.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the latency and error draws.")] = 0,
    input_key: Annotated[str, typer.Option(help="Key of a row's input text.")] = "text",
    answer_key: Annotated[str, typer.Option(help="Key of a row's recorded answer.")] = "teacher",
    model: Annotated[str, typer.Option(help="Model name that replies carry.")] = "replay",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address as JSON when ready.")
    ] = False,
) -> None:
    """Answer OpenAI-style chat requests from recorded answers; anything not recorded is a 404.

    Example: graduate serving replay examples/tickets/train.jsonl --port 8082 --latency 50ms
    """
    from serving.listen import address_of, bind, serve
    from serving.replay import ReplaySettings, load
    from serving.replay_app import create_replay_app

    settings = ReplaySettings(
        model=model,
        latency_seconds=parsed(seconds, latency, "--latency"),
        error_share=error_rate,
        requests_per_second=rate_limit,
        seed=seed,
    )
    try:
        rows = load(files, input_key, answer_key)
        listener = bind(host, port)
    except OperatorError as why:
        raise fail(why) from why
    address = address_of(listener)

    def ready() -> None:
        if as_json:
            typer.echo(json.dumps({"address": address, "rows": len(rows), "model": model}))
        else:
            console.print(
                f"replay teacher: {len(rows)} recorded answers at {address}/v1", highlight=False
            )

    serve(create_replay_app(rows, settings), listener, on_ready=ready, drain_seconds=5)


@app.command()
def serve(
    model: Annotated[
        str, typer.Option(help="Base model: a folder, a GGUF file, a hub id, or smollm2.")
    ],
    adapters: Annotated[
        str | None,
        typer.Option(metavar="DIR|S3", help="Adapter registry; default is HOME/adapters."),
    ] = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8081,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default is one for each core.")
    ] = None,
    weights: Annotated[
        Precision,
        typer.Option(help="Base model's weights; int8 takes less memory, answers may differ."),
    ] = "float32",
    max_batch: Annotated[int, typer.Option(min=1, help="Requests in one batch.")] = 32,
    draft_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens that a step guesses ahead and checks, over all its requests; answers stay the same. 0 guesses none.",
        ),
    ] = DRAFT_TOKENS,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; above it a 429.")
    ] = 256,
    max_total_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of prompt and answer; default is the model's own limit."),
    ] = None,
    adapter_memory: Annotated[str, typer.Option(help="Memory for resident adapters.")] = "512MiB",
    pin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="Adapter loaded at the start and never evicted; repeat it."
        ),
    ] = None,
    allow: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Folder outside the registry that links in it may lead to; repeat it.",
        ),
    ] = None,
    home: HomeOption = Path(".graduate"),
    drain: Annotated[str, typer.Option(help="Time open requests get after SIGTERM.")] = "30s",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address as JSON when ready.")
    ] = False,
) -> None:
    """Serve many LoRA adapters on one base model, with LoRAX's and OpenAI's HTTP routes.

    Example: graduate serving serve --model smollm2 --adapters .graduate/adapters --port 8081
    """
    # Read when torch is imported. OpenMP's threads wait for each other by spinning for milliseconds: on a machine that does
    # other work too, a thread that waits then keeps the one it waits for from the processor.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    from serving.memory import bound_heaps

    bound_heaps()
    from serving.launch import launch
    from serving.listen import address_of, bind
    from serving.settings import ServeSettings

    settings = ServeSettings(
        model=model,
        adapters=adapters or str(home / "adapters"),
        models=home / "models",
        threads=threads,
        weights=weights,
        max_batch=max_batch,
        draft_tokens=draft_tokens,
        queue=queue,
        max_total_tokens=max_total_tokens,
        adapter_memory_bytes=parsed(size_bytes, adapter_memory, "--adapter-memory"),
        pinned=tuple(pin or ()),
        allowed=tuple(allow or ()),
        drain_seconds=parsed(seconds, drain, "--drain"),
    )

    def ready(address: str, base_id: str, count: int) -> None:
        if as_json:
            typer.echo(json.dumps({"address": address, "model": base_id, "adapters": count}))
        else:
            console.print(
                f"student server: {base_id} and {count} adapter versions at {address}",
                highlight=False,
            )

    try:
        listener = bind(host, port)
        launch(
            settings, listener, lambda base_id, count: ready(address_of(listener), base_id, count)
        )
    except OperatorError as why:
        raise fail(why) from why
