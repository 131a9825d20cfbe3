"""A rule that a cell breaks counts when it breaks again with longer timeouts: a busy machine is not a fault.

The timeouts of the matrix are short, so that it ends in minutes; a machine that works on something else for half a
second looks like a slow backend then. What is lost needs no second look.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults import matrix
from benchmarks.faults.cells import OPEN_FOR_SECONDS
from benchmarks.faults.matrix import CellResult
from benchmarks.faults.rules import broken_rules, of_cell

PATIENCE = 4.0


async def confirmed(
    results: Sequence[CellResult],
    home: Path,
    told: Callable[[], None],
    open_for_seconds: float = OPEN_FOR_SECONDS,
) -> list[str]:
    """The broken rules that hold: all of the second run's, and what the first one lost.

    Args:
        home: a new folder, for the second run's router.
        told: called after each cell of it.
        open_for_seconds: until an open breaker lets a probe through there.
    """
    lost = [f"{r.cell.name}: {r.lost} replies are not in the log" for r in results if r.lost]
    suspects = [r.cell for r in results if any(of_cell(r, results))]
    if not suspects:
        return lost
    if any(cell.mode == "dark_launch" for cell in suspects):  # a copy's delay is held against these
        well = [r.cell for r in results if (r.cell.fault, r.cell.mode) == ("none", "dark_launch")]
        suspects += [cell for cell in well if cell not in suspects]
    again = await matrix.run(suspects, home, told, open_for_seconds, PATIENCE)
    return [*lost, *broken_rules(again)]
