"""One log or several: segments here, a shipped log there, or both, read as one."""

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from router.errors import SettingsError
from router.records import Feedback, Record
from router.scan import early_answers, feedback_beside, scan_segments
from router.traffic import OPEN, segments

if TYPE_CHECKING:
    from router.log_store import LogStore

_ASKERS = 8
"""Manifests that are asked for at a time: over a network each is a wait."""


def scan_logs(
    places: Collection[Path | str],
    *,
    routes: Collection[str] | None,
    since: float | None,
    until: float | None,
    bodies: bool,
) -> Iterator[Record]:
    """See `traffic.scan`, which is this behind a plain name.

    Raises:
        SettingsError: a shipped log is asked for and its libraries are not installed, or a URL is of no known kind.
        StoreError: a shipped log cannot be read.
    """
    stores = [_store(place) for place in places if is_shipped(place)]
    folders = [Path(place) for place in places if not is_shipped(place)]
    here = [path for folder in folders for path in segments(folder)]
    feedback: dict[str, list[Feedback]] = defaultdict(list)
    for line in chain.from_iterable(feedback_beside(folder) for folder in folders):
        feedback[line.id].append(line)
    if not stores:
        yield from scan_segments(
            here, feedback, routes=routes, since=since, until=until, bodies=bodies
        )
        return
    from router.log_layout import stored_name
    from router.shipped import feedback_in, scan_shipped

    for line in chain.from_iterable(feedback_in(store, since) for store in stores):
        feedback[line.id].append(line)
    here = _not_shipped(here, stores)
    but = {stored_name(path) for path in here}
    late = list(early_answers(here))
    logs = [
        scan_segments(here, feedback, routes=routes, since=since, until=until, bodies=bodies),
        *(
            scan_shipped(
                store, feedback, routes=routes, since=since, until=until, bodies=bodies,
                late=late, but=but,
            )
            for store in stores
        ),
    ]  # fmt: skip
    yield from heapq.merge(*logs, key=lambda record: (record.at, record.id))


def is_shipped(place: str | Path) -> bool:
    """Whether a place holds a shipped log; otherwise it is a folder of segments."""
    return "://" in str(place) or (Path(place) / "records").is_dir()


def _store(place: Path | str) -> "LogStore":
    try:
        from router.log_store import LogStore
    except ImportError as why:
        raise SettingsError(
            f"{place}: a shipped log needs pip install 'graduate[ship]': {why}"
        ) from why
    return LogStore(place)


def _not_shipped(here: list[Path], stores: "list[LogStore]") -> list[Path]:
    """Segments that are in no store whole."""
    from router.log_layout import stored_name
    from router.ship import is_in

    def is_only_here(path: Path) -> bool:
        return path.name.endswith(OPEN) or not any(
            is_in(store, path, stored_name(path)) for store in stores
        )

    with ThreadPoolExecutor(_ASKERS) as pool:
        return [path for path, only in zip(here, pool.map(is_only_here, here), strict=True) if only]
