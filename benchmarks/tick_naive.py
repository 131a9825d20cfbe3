"""The tick's peer: evidently as its first page shows it, over the whole log in one frame; older half against newer half.

python -m benchmarks.tick_naive HOME
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path


def one(home: Path) -> dict[str, float]:
    """Read all, describe all, compare; seconds, peak memory."""
    begun = time.perf_counter()
    warnings.simplefilter("ignore")
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.descriptors import (
        NonLetterCharacterPercentage,
        SentenceCount,
        TextLength,
        WordCount,
    )
    from evidently.presets import DataDriftPreset

    found = []
    for path in sorted((home / "traffic").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            texts = {answer["role"]: answer.get("text") for answer in record["answers"]}
            messages = record["request"]["messages"]
            found.append(
                {"at": record["at"], "text": messages[-1]["content"], "answer_class": texts["teacher"]}
            )  # fmt: skip
    frame = pd.DataFrame(found).sort_values("at")
    definition = DataDefinition(text_columns=["text"], categorical_columns=["answer_class"])
    described = [
        Dataset.from_pandas(
            part,
            data_definition=definition,
            descriptors=[
                TextLength("text", alias="characters"),
                WordCount("text", alias="words"),
                SentenceCount("text", alias="sentences"),
                NonLetterCharacterPercentage("text", alias="non_letters"),
            ],
        )
        for part in (frame[len(frame) // 2 :], frame[: len(frame) // 2])
    ]
    columns = ["characters", "words", "sentences", "non_letters", "answer_class"]
    Report([DataDriftPreset(columns=columns)]).run(*described).dict()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "records": len(found),
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(one(Path(sys.argv[1]))) + "\n")
