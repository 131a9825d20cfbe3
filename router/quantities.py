"""How a policy writes quantities: durations ("250ms", "1h"), shares ("10%", 0.1), and nothing else.

Pure; the pydantic types here give seconds and fractions to everyone behind the YAML.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(value: Any) -> float:
    """Seconds of "250ms", "2s", "5m", "1h", "7d" or "1h30m"; a bare number is refused, its unit is unknown.

    Raises:
        ValueError: anything else.
    """
    text = value.strip() if isinstance(value, str) else ""
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(
            'allowed: a duration with its unit, such as "250ms", "2s", "5m", "1h" or "7d"'
        )
    # 51 ms is 0.051 s, not 0.051000000000000004: a policy dumped and loaded again is equal.
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts), 9)


def fraction(value: Any) -> float:
    """0-1 of "25%" or 0.25.

    Raises:
        ValueError: not a number, or outside 0-1.
    """
    share: float | None = None
    if isinstance(value, bool):
        pass
    elif isinstance(value, int | float):
        share = float(value)
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?\s*%", value.strip()):
        share = float(value.strip()[:-1]) / 100
    if share is None or not 0 <= share <= 1:
        raise ValueError('allowed: a share from 0 to 1, or "0%" to "100%"')
    return share


def _written(value: float) -> str:
    """Seconds as a policy writes them, to the microsecond."""
    return f"{value:.6f}".rstrip("0").rstrip(".") + "s"


Seconds = Annotated[
    float,
    BeforeValidator(seconds, json_schema_input_type=str),
    PlainSerializer(_written, return_type=str, when_used="json"),
    Field(ge=0),
]
Share = Annotated[
    float, BeforeValidator(fraction, json_schema_input_type=float | str), Field(ge=0, le=1)
]
