"""The walk-through's stages, in the story's order; each tells what it does and notes its figures."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import httpx
from rich.table import Table

from examples.story import (
    Story,
    ask,
    console,
    graduate,
    report,
    right_share,
    tick,
    value_of,
    write_policy,
)


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
    # The base model shown answered rows is the slowest line of the table, and the least of them: more than a minute here.
    graduate("train", "evaluate", "--home", home, "--run", str(run), "--few-shot", "0", *plan)
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
    # Who asks for a live teacher has its terms to keep; the walk-through's student stays on this machine.
    signed = (
        "--accept-terms",
        "whoever runs the walk-through",
        "asked for a live teacher; nothing leaves this machine",
    )
    graduate(
        "train", "publish", "--home", home, "--run", str(run), "--name", task.name,
        "--force", "the walk-through goes on whatever the evaluation says", *(signed if story.live_teacher else ()),
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
    rate = max((one["rate"] for one in found["disagreement"]), key=lambda r: int(r["rows"]))
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
            if value_of(flag[f"{role}_text"] or "") == value_of(answer):
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
    alone = sum(value_of(r.teacher) == value_of(r.gold) for r in rows) / len(rows)
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
