"""How the student server's options write quantities: "50ms" and "512MiB". Pure; raises ValueError that says what is allowed."""

import re

_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def seconds(text: str) -> float:
    """Seconds of "50ms", "2s", "1m" or "0"; other bare numbers are refused, their unit is unknown."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)", text.strip())
    if found is None:
        if text.strip() == "0":
            return 0.0
        raise ValueError(f'{text!r}: allowed is a duration with its unit, such as "50ms" or "2s"')
    return float(found[1]) * _DURATIONS[found[2]]


def size_bytes(text: str) -> int:
    """Bytes of "512MiB", "1.5GiB", "64MB" or a bare number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?", text.strip())
    if found is None:
        raise ValueError(f'{text!r}: allowed is a size such as "512MiB", "2GiB" or "64MB"')
    return int(float(found[1]) * _SIZES[found[2] or "B"])
