"""Draw docs/images/dashboard-*.png: `python -m benchmarks.dashboards --out docs/images`. Needs prometheus on the PATH."""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.dashboards.draw import View, draw
from benchmarks.dashboards.place import Place
from benchmarks.dashboards.prometheus import NoPrometheus
from benchmarks.dashboards.story import Story, Traffic
from monitoring.dashboards import BOARDS


def main() -> int:
    """Tell the story, then ask every panel's queries and draw the answers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboards", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the PNGs")
    parser.add_argument("--part", type=float, default=25.0, help="seconds of each part at least")
    parser.add_argument("--per-second", type=float, default=20.0, help="requests a second")
    parser.add_argument(
        "--route", default="tickets", help="value of the route variable; traffic shows all routes"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    with tempfile.TemporaryDirectory(prefix="graduate-dashboards-") as root:
        place = Place(Path(root), tick_seconds=4)
        traffic = Traffic(place, per_second=given.per_second)
        try:
            place.start()
            traffic.start()
            start = time.time()
            Story(place, traffic, given.part).run(
                lambda part: print(f"{time.time() - start:6.0f} s  {part}", file=sys.stderr)
            )
            end = time.time()
            for board in BOARDS:
                route = ".*" if board is BOARDS[-1] else given.route
                view = View(place.prometheus, start, end, route=route)
                path = given.out / f"dashboard-{board.uid.removeprefix('graduate-')}.png"
                draw(board, view, path)
                print(path)
        except NoPrometheus as why:
            print(f"error: {why}", file=sys.stderr)
            return 2
        finally:
            traffic.stop()
            place.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
