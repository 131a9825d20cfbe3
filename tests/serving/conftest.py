"""One place for all tests of this folder: making it takes a second."""

import pytest

from tests.serving.place import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("engine"))
