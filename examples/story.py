"""The walk-through's frame: its story so far, commands as a person would type them, requests as the application sends them."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress

from examples.tasks import Row, Task

console = Console()
PRICE = {"input": 2.50, "output": 10.00}
"""US dollars a million tokens: a large model's list price, for the savings."""


@dataclass(slots=True)
class Story:
    """Where the walk-through is: its folders, ports, servers and the figures so far."""

    task: Task
    home: Path
    model: str
    ports: dict[str, int]
    live_teacher: bool
    stages: list[tuple[str, str]] = field(default_factory=list)
    up: subprocess.Popen[bytes] | None = None
    told: int = 0

    def at(self, name: str) -> str:
        """Address of a server."""
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def policy_file(self) -> Path:
        """The policy that the walk-through edits, as a person would."""
        return self.home / "policy.yaml"

    def tell(self, title: str, text: str) -> None:
        """Announce a stage."""
        self.told += 1
        console.print()
        console.print(Panel(text, title=f"[bold]{self.told}. {title}", title_align="left"))

    def note(self, stage: str, figures: str) -> None:
        """Keep a stage's figures for the table at the end."""
        self.stages.append((stage, figures))


def graduate(*arguments: str, quiet: bool = False) -> str:
    """Run a `graduate` command and show it; its output too unless `quiet`, which returns it."""
    console.print(f"[dim]$ graduate {' '.join(arguments)}[/]", soft_wrap=True, highlight=False)
    command = [sys.executable, "-m", "graduate", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE if quiet else None, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"graduate {arguments[0]} {arguments[1]} ended with status {done.returncode}"
        )
    return done.stdout.decode() if quiet else ""


def write_policy(story: Story, mode: str, **more: Any) -> None:
    """Edit the policy as a person would; the router takes it within two seconds."""
    task = story.task
    teacher: dict[str, Any] = {
        "kind": "openai",
        "base_url": f"{story.at('teacher')}/v1",
        "price": PRICE,
    }
    if story.live_teacher:
        teacher |= {"base_url": "https://api.openai.com/v1", "api_key_env": "OPENAI_API_KEY"}
    route = {
        "match": {"model": task.name},
        "teacher": {"backend": "teacher", "model": "gpt-4o-2024-11-20" if story.live_teacher else "replay"},
        "student": {
            "backend": "students", "adapter": task.name,
            "prompt": task.prompt, "max_input_chars": task.max_input_chars, "max_tokens": 32,
        },
        "mode": mode,
        "answer": task.answer,
        "guard": {"rules": ["schema", "not_empty", "not_truncated"]},
        "flags": {"disagreement": True, "low_confidence": 0.5, "per_hour": 40},
        **more,
    }  # fmt: skip
    policy = {
        "version": 1,
        "backends": {
            "teacher": teacher,
            "students": {
                "kind": "lorax", "base_url": story.at("student"),
                "timeout": {"connect": "1s", "first_token": "30s", "total": "60s"},
            },
        },
        "routes": {task.name: route},
        "default": {"teacher": {"backend": "teacher"}, "mode": "teacher"},
    }  # fmt: skip
    story.policy_file.write_text(yaml.safe_dump(policy, sort_keys=False, allow_unicode=True))
    if story.up is not None:
        _wait_for_policy(story, mode)


def _wait_for_policy(story: Story, mode: str) -> None:
    """Until the router says that the edit is in force."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = httpx.get(f"{story.at('admin')}/policy", trust_env=False).json()
        if found["error"]:
            raise SystemExit(f"the router refuses the policy: {found['error']}")
        if found["policy"]["routes"][story.task.name].get("mode", "teacher") == mode:
            return
        time.sleep(0.1)
    raise SystemExit("the router did not take the new policy within 10 s")


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply as the application saw it."""

    row: Row
    text: str
    served_by: str
    seconds: float


async def _ask(story: Story, rows: Sequence[Row], concurrency: int) -> list[Reply]:
    client = AsyncOpenAI(
        base_url=f"{story.at('router')}/v1", api_key="any", max_retries=2, timeout=120
    )
    slots = asyncio.Semaphore(concurrency)
    replies: list[Reply] = []
    with Progress(console=console) as bar:
        job = bar.add_task("requests through the router", total=len(rows))

        async def one(row: Row) -> None:
            async with slots:
                began = time.perf_counter()
                raw = await client.chat.completions.with_raw_response.create(
                    model=story.task.name,
                    messages=[
                        {"role": "system", "content": story.task.system},
                        {"role": "user", "content": row.text},
                    ],
                    user=f"customer-{row.id}",
                    temperature=0,
                )
                text = raw.parse().choices[0].message.content or ""
                served = raw.headers["x-graduate-served-by"]
                replies.append(Reply(row, text, served, time.perf_counter() - began))
                bar.advance(job)

        async with client:
            await asyncio.gather(*(one(row) for row in rows))
    return replies


def ask(story: Story, rows: Sequence[Row], concurrency: int = 8) -> list[Reply]:
    """Send rows through the router with the official OpenAI client, as the application does."""
    try:
        return asyncio.run(_ask(story, rows, concurrency))
    except OpenAIError as why:
        raise SystemExit(f"a request failed: {why}; logs are in {story.home / 'logs'}") from why


def right_share(replies: Sequence[Reply]) -> float:
    """Share of replies that equal the gold answer."""
    right = sum(bool(value_of(r.text) == value_of(r.row.gold)) for r in replies)
    return right / len(replies)


def value_of(text: str) -> Any:
    """An answer as JSON, so that spaces do not matter; None when it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def report(story: Story) -> dict[str, Any]:
    """The monitor's pass, printed, and its figures."""
    graduate("monitor", "report", "--home", str(story.home), "--route", story.task.name)
    url = f"{story.at('monitor')}/api/routes/{story.task.name}/report"
    found = httpx.get(url, trust_env=False).json()
    assert isinstance(found, dict)
    return found


def tick(story: Story) -> None:
    """The monitor's pass at once, not when its own turn comes: it moves canaries too."""
    graduate("monitor", "tick", "--home", str(story.home), "--route", story.task.name)
