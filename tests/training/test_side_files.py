"""Lines about rows: each names its row, or is refused with file, line and what is allowed."""

from pathlib import Path

import pytest

from training.errors import DataError
from training.side_files import entries


def test_a_row_is_named_by_id_text_or_messages(tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text(
        '{"id": "r1", "text": "hello"}\n\n{"messages": [{"role": "user", "content": "hello"}]}\n'
    )
    (place, entry, both), (_, _, by_input) = entries(file)
    assert (place, entry["text"], both[0]) == (f"{file}: line 1", "hello", "id:r1")
    assert by_input == both[1:]


@pytest.mark.parametrize(
    ("line", "allowed"),
    [("{", "not JSON"), ("[1]", "allowed: a JSON object"), ('{"score": 1}', "allowed: an 'id'")],
)
def test_a_line_that_names_no_row_is_refused(line: str, allowed: str, tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text(f'{{"id": "r1"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2") as refused:
        list(entries(file))
    assert allowed in str(refused.value)
