"""The whole loop on one machine, told as it happens: `make demo`, or `python -m examples.walkthrough --help`.

Every stage is a `graduate` command or a request through the router, as a user would do it; this file only keeps the
order and the figures. The teacher replays recorded answers unless OPENAI_API_KEY is set.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
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
from rich.table import Table

from examples.tasks import Row, Task, find_jigsaw, jigsaw, tickets

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
    return sum(_value(r.text) == _value(r.row.gold) for r in replies) / len(replies)


def _value(text: str) -> Any:
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


# the stages


def start(story: Story) -> None:
    """Servers up: student server, router, monitor, and the replay teacher unless there is a live one."""
    who = (
        "OpenAI (OPENAI_API_KEY is set)"
        if story.live_teacher
        else "a replay of recorded answers (it says so in every reply)"
    )
    story.tell(
        "Start", f"Student server, router and monitor on this machine. The teacher is {who}."
    )
    story.home.mkdir(parents=True, exist_ok=True)
    everything = [*story.task.traffic, *story.task.test, *story.task.live, *story.task.shifted]
    recorded = story.home / "recorded.jsonl"
    lines = [
        json.dumps({"id": r.id, "text": r.text, "teacher": r.teacher}, ensure_ascii=False)
        for r in everything
    ]
    recorded.write_text("\n".join(lines) + "\n")
    write_policy(story, "teacher")
    command = [
        "up", "--home", str(story.home), "--policy", str(story.policy_file), "--model", story.model,
        "--port", str(story.ports["router"]), "--admin-port", str(story.ports["admin"]),
        "--student-port", str(story.ports["student"]), "--monitor-port", str(story.ports["monitor"]),
        "--teacher-port", str(story.ports["teacher"]),
    ]  # fmt: skip
    if not story.live_teacher:
        command += ["--replay", str(recorded)]
    console.print(f"[dim]$ graduate {' '.join(command)}[/]", soft_wrap=True, highlight=False)
    began = time.monotonic()
    log = (story.home / "up.log").open("wb")
    # A session of its own: the servers go on after the walk-through has ended.
    story.up = subprocess.Popen(
        [sys.executable, "-m", "graduate", *command], stdout=log, stderr=log, start_new_session=True
    )
    state = story.home / "up.json"
    with console.status(
        "waiting until each is ready (the base model is fetched and converted the first time) …"
    ):
        while not state.exists():
            if story.up.poll() is not None:
                raise SystemExit((story.home / "up.log").read_text())
            time.sleep(0.2)
    story.note("start", f"all servers ready in {time.monotonic() - began:.0f} s")


def teacher_traffic(story: Story) -> None:
    """The application's requests, answered by the teacher, logged by the router."""
    rows = story.task.traffic
    story.tell(
        "The teacher answers, the router logs",
        f"The application sends {len(rows)} requests; only its base_url points at the router. Every answer comes from the teacher.",
    )
    began = time.perf_counter()
    replies = ask(story, rows, concurrency=32)
    rate = len(replies) / (time.perf_counter() - began)
    right = right_share(replies)
    console.print(
        f"{len(replies)} answers at {rate:.0f} a second; the teacher equals the gold answer in {100 * right:.1f} %"
    )
    story.note(
        "teacher traffic",
        f"{len(replies)} requests logged; teacher against gold {100 * right:.1f} %",
    )


def train(story: Story) -> dict[str, Any]:
    """Dataset, student, evaluation, publication."""
    task, home = story.task, str(story.home)
    story.tell(
        "Dataset, student, evaluation, publication",
        "From the log to a LoRA adapter in the registry. The test rows are frozen: they have gold labels and are never trained on.",
    )
    test = story.home / "test.jsonl"
    lines = [
        json.dumps(
            {"id": r.id, "text": r.text, "teacher": r.teacher, "gold": r.gold}, ensure_ascii=False
        )
        for r in task.test
    ]
    test.write_text("\n".join(lines) + "\n")
    built = json.loads(
        graduate(
            "train", "build", "--route", task.name, "--home", home, "--test-file", str(test),
            "--test-share", "0", "--validation-share", "0.12", "--json", quiet=True,
        )
    )  # fmt: skip
    console.print(f"dataset {built['digest']}: {built['counts']}")
    story.note("dataset", ", ".join(f"{n} {split}" for split, n in built["counts"].items()))
    run = story.home / "runs" / f"{task.name}-demo"
    shutil.rmtree(run, ignore_errors=True)
    sets = [part for assignment in task.set_ for part in ("--set", assignment)]
    began = time.perf_counter()
    graduate(
        "train",
        "fit",
        "--home",
        home,
        "--dataset",
        built["path"],
        "--model",
        story.model,
        "--run",
        str(run),
        *sets,
    )
    story.note(
        "student", f"trained in {time.perf_counter() - began:.0f} s; loss curve {run / 'curve.png'}"
    )
    plan = [] if task.hand_over is None else ["--hand-over", str(task.hand_over)]
    graduate("train", "evaluate", "--home", home, "--run", str(run), *plan)
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())
    main = evaluation["tests"][0]
    figures = {line["name"]: line["figures"]["accuracy"] for line in main["lines"]}
    for name in (
        "majority",
        "TF-IDF + logistic regression",
        "base model, zero-shot",
        "student",
        "teacher",
    ):
        found = figures[name]
        interval = f"[{100 * found['low']:.1f}-{100 * found['high']:.1f}]"
        story.note(
            f"test, {name}", f"{100 * found['share']:.1f} {interval} of {main['rows']} rows right"
        )
    for sentence in evaluation["sentences"]:
        if " the student " in sentence and sentence.startswith("test,"):
            story.note("in words", sentence.partition(": ")[2])
    graduate(
        "train", "publish", "--home", home, "--run", str(run), "--name", task.name,
        "--force", "the walk-through goes on whatever the evaluation says",
    )  # fmt: skip
    return {"evaluation": evaluation, "dataset": built, "run": run}


def dark_launch(story: Story) -> None:
    """The student answers unseen; disagreements are counted."""
    story.tell(
        "Dark launch",
        "`mode: dark_launch`: the teacher still answers everybody, the student is asked too and nobody sees its answer.",
    )
    write_policy(story, "dark_launch", dark_launch={"share": "100%"})
    rows = story.task.live[: len(story.task.live) // 2]
    before = _compared(story)
    ask(story, rows)
    _wait_for_shadows(story, before + len(rows))
    found = report(story)
    rate = found["disagreement"][0]["rate"]
    shown = f"{100 * rate['share']:.1f} % [{100 * rate['low']:.1f}-{100 * rate['high']:.1f}] of {rate['rows']}"
    story.note("dark launch", f"disagreement {shown}; {found['flags_open']} flags")


def _compared(story: Story) -> int:
    """Requests that the router has compared so far."""
    text = httpx.get(f"{story.at('admin')}/metrics", trust_env=False).text
    counted = [
        line.rsplit(" ", 1)[1]
        for line in text.splitlines()
        if line.startswith("graduate_router_comparisons_total")
    ]
    return int(sum(map(float, counted)))


def _wait_for_shadows(story: Story, wanted: int) -> None:
    """Until so many requests have been compared: unseen copies settle after the replies."""
    deadline = time.monotonic() + 120
    with console.status("the last unseen copies settle …"):
        while _compared(story) < wanted and time.monotonic() < deadline:
            time.sleep(0.3)


def review(story: Story, trained: dict[str, Any]) -> None:
    """A person looks at what was flagged; the labels are in the next dataset."""
    story.tell(
        "Flags and reviews",
        "Disagreements wait in the review queue, most informative first. Here the recorded gold labels play the reviewer; "
        "`graduate monitor review` and the console are for people.",
    )
    gold = {" ".join(r.text.split()): r.gold for r in [*story.task.live, *story.task.shifted]}
    home = str(story.home)
    flags = json.loads(graduate("monitor", "review", "list", "--home", home, "--json", quiet=True))
    verdicts: Counter[str] = Counter()
    for flag in flags[:12]:
        answer = gold.get(" ".join(flag["input_text"].split()))
        if answer is None:
            continue
        verdict = "correct"
        for role in ("teacher", "student"):
            if _value(flag[f"{role}_text"] or "") == _value(answer):
                verdict = f"accept_{role}"
                break
        more = ["--answer", answer] if verdict == "correct" else []
        graduate(
            "monitor", "review", "decide", flag["id"], "--verdict", verdict, *more, "--by", "gold labels",
            "--home", home, "--json", quiet=True,
        )  # fmt: skip
        verdicts[verdict] += 1
    test = str(story.home / "test.jsonl")
    built = json.loads(
        graduate(
            "train", "build", "--route", story.task.name, "--home", home, "--test-file", test,
            "--test-share", "0", "--validation-share", "0.12", "--json", quiet=True,
        )
    )  # fmt: skip
    before = trained["dataset"]["gold"]
    shown = ", ".join(f"{n} {v.replace('_', ' ')}" for v, n in verdicts.items())
    console.print(
        f"reviewed: {shown}; rows with gold in the next dataset: {before} → {built['gold']}"
    )
    story.note("reviews", f"{shown}; next dataset has {built['gold'] - before} more gold rows")


def canary(story: Story) -> None:
    """The student answers a growing share; the monitor moves it by itself, on evidence."""
    story.tell(
        "Canary",
        "`mode: canary`: the student answers a share of users for good. The gate: at most 25 % disagreement with the teacher. "
        "By always-valid tests the monitor gives it more, or rolls it back; without evidence it holds.",
    )
    gates = {"disagreement": {"max": "25%"}, "guard_failures": {"max": "10%"}}
    rule = {
        "steps": ["20%", "50%", "100%"],
        "hold": "1s",
        "audit": "100%",
        "gates": gates,
        "confidence": "90%",
    }
    write_policy(story, "canary", canary=rule, dark_launch={"share": "100%"})
    tick(story)
    rows = story.task.live[len(story.task.live) // 2 :]
    half = max(1, len(rows) // 2)
    served: Counter[str] = Counter()
    compared = _compared(story)
    for part in (rows[:half], rows[half:], rows):
        served.update(r.served_by for r in ask(story, part))
        compared += len(part)
        _wait_for_shadows(story, compared)
        tick(story)
    events = json.loads(
        graduate("monitor", "rollout", "--home", str(story.home), "--json", quiet=True)
    )
    moves = " → ".join(f"{e['action']} {100 * e['share']:.0f} %" for e in events)
    console.print(f"moves: {moves}")
    story.note("canary", f"{moves}; answered by {dict(served)}")


def hybrid(story: Story, trained: dict[str, Any]) -> None:
    """Confident answers are the student's, the rest go to the teacher."""
    main = trained["evaluation"]["tests"][0]
    found = main["hybrid"]
    if found is None:
        story.note("hybrid", "skipped: a test row has no gold label or no teacher's answer")
        return
    floor = found["min_confidence"]
    story.tell(
        "Hybrid",
        f"`mode: hybrid`: below a confidence of {floor:.2f} (fixed on validation rows) the teacher answers instead.",
    )
    write_policy(story, "hybrid", hybrid={"cascade": {"min_confidence": round(floor, 4)}})
    rows = story.task.live
    replies = ask(story, rows)
    share = sum(r.served_by == "student" for r in replies) / len(replies)
    right = right_share(replies)
    alone = sum(_value(r.teacher) == _value(r.gold) for r in rows) / len(rows)
    picture = trained["run"] / "evaluation" / "hybrid-test.png"
    console.print(
        f"live: the student answered {100 * share:.0f} % by itself; {100 * right:.1f} % right, teacher alone {100 * alone:.1f} %; "
        f"curve: {picture}",
        highlight=False,
    )
    curve = found["accuracy"]
    story.note(
        "hybrid, test",
        f"{100 * curve['share']:.1f} right at {100 * found['handed_over']:.0f} % handed over; teacher alone "
        f"{100 * found['teacher_alone']['share']:.1f}, student alone {100 * found['student_alone']['share']:.1f}",
    )
    story.note(
        "hybrid, live",
        f"{100 * share:.0f} % of teacher calls saved; {100 * right:.1f} % right, teacher alone {100 * alone:.1f} %",
    )


def drift(story: Story) -> None:
    """Other inputs arrive, and the monitor says so."""
    story.tell("Drift", f"The inputs change: {story.task.shift}.")
    ask(story, story.task.shifted)
    found = report(story)["drift"]
    moved = [c["name"] for c in found["columns"] if c["drifted"]]
    word = f"raised: {', '.join(moved)}" if found["drifted"] else "not raised"
    story.note("drift", f"{word} ({found['current_rows']} rows)")


def ending(story: Story, began: float) -> None:
    """The table of every stage, and what is left running."""
    table = Table(
        "stage",
        "figures",
        title=f"The loop on {story.task.name}, in {time.monotonic() - began:.0f} s",
    )
    for stage, figures in story.stages:
        table.add_row(stage, figures)
    console.print()
    console.print(table)
    (story.home / "walkthrough.json").write_text(json.dumps(story.stages, indent=2))
    console.print(
        f"left running: router {story.at('router')}/v1 · console {story.at('monitor')} · metrics {story.at('admin')}/metrics · "
        f"student server {story.at('student')}\nstop them: graduate down --home {story.home}",
        highlight=False,
        soft_wrap=True,
    )


def parse_arguments() -> argparse.Namespace:
    """The walk-through's options."""
    parser = argparse.ArgumentParser(prog="examples.walkthrough", description=__doc__)
    parser.add_argument("--data", choices=("tickets", "jigsaw"), default="tickets")
    parser.add_argument("--jigsaw", type=Path, help="folder of the playbook's data")
    parser.add_argument(
        "--home", type=Path, default=Path(".graduate/demo"), help="state folder; emptied first"
    )
    parser.add_argument(
        "--model", default="smollm2", help="base model: smollm2, a folder, a GGUF file, a hub id"
    )
    parser.add_argument(
        "--port", type=int, default=8080, help="router; the other servers take the ports after 8081"
    )
    parser.add_argument("--stop", action="store_true", help="stop the servers at the end")
    return parser.parse_args()


def main() -> None:
    """Tell the story."""
    options = parse_arguments()
    began = time.monotonic()
    task = tickets() if options.data == "tickets" else jigsaw(find_jigsaw(options.jigsaw))
    names = ("router", "student", "teacher", "monitor")
    ports = {name: options.port + i for i, name in enumerate(names)} | {
        "admin": options.port + 1000
    }
    if (options.home / "up.json").exists():
        graduate("down", "--home", str(options.home))
    models = options.home / "models"
    keep = options.home.parent / "models"
    if options.home.exists():
        shutil.rmtree(options.home)
    options.home.mkdir(parents=True)
    keep.mkdir(parents=True, exist_ok=True)
    models.symlink_to(keep.resolve())  # a converted base model serves every later run
    story = Story(
        task, options.home.resolve(), options.model, ports, bool(os.environ.get("OPENAI_API_KEY"))
    )
    try:
        start(story)
        teacher_traffic(story)
        trained = train(story)
        dark_launch(story)
        review(story, trained)
        canary(story)
        hybrid(story, trained)
        drift(story)
        ending(story, began)
    except BaseException:
        _stop(story)
        raise
    if options.stop:
        _stop(story)


def _stop(story: Story) -> None:
    if story.up is not None and story.up.poll() is None:
        story.up.send_signal(signal.SIGTERM)
        story.up.wait(60)


if __name__ == "__main__":
    main()
