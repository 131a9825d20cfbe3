"""Who joins a step: oldest first, within the step's prompt tokens and the batch's rows and cached tokens."""

import pytest

from serving.batching import Limits, State, Waiting, next_batch

LIMITS = Limits(max_rows=4, max_prefill_tokens=128, max_total_tokens=1000)


def waiting(*items: tuple[int, int, State]) -> list[Waiting]:
    return [Waiting(n, new, total, state) for n, (new, total, state) in enumerate(items)]


@pytest.mark.parametrize(
    ("items", "running", "joined"),
    [
        pytest.param([(60, 130, "ready")] * 4, (0, 0), [0, 1], id="as many as the step's tokens"),
        pytest.param([(900, 910, "ready")] * 2, (0, 0), [0], id="a long one goes alone"),
        pytest.param([(10, 20, "ready")] * 9, (1, 20), [0, 1, 2], id="rows left"),
        pytest.param(
            [(10, 20, "loading"), (10, 20, "ready")], (0, 0), [1], id="a loading one holds nobody up"
        ),
        pytest.param(
            [(50, 600, "ready"), (5, 9, "ready")], (1, 500), [], id="the oldest has no room: others wait"
        ),
        pytest.param([(50, 2000, "ready")], (0, 0), [0], id="longer than all room, but alone"),
    ],
)  # fmt: skip
def test_requests_that_join(
    items: list[tuple[int, int, State]], running: tuple[int, int], joined: list[int]
) -> None:
    assert next_batch(waiting(*items), *running, LIMITS) == joined
