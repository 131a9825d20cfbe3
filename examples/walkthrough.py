"""The whole loop on one machine, told as it happens: `make demo`, or `python -m examples.walkthrough --help`.

Every stage is a `graduate` command or a request through the router, as a user would do it; this file only keeps the
order and the figures. The teacher replays recorded answers unless OPENAI_API_KEY is set.
"""

import argparse
import os
import shutil
import signal
import time
from pathlib import Path

from examples import stages
from examples.story import Story, graduate
from examples.tasks import find_jigsaw, jigsaw, tickets


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
        stages.start(story)
        stages.teacher_traffic(story)
        trained = stages.train(story)
        stages.dark_launch(story)
        stages.review(story, trained)
        stages.canary(story)
        stages.hybrid(story, trained)
        stages.drift(story)
        stages.ending(story, began)
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
