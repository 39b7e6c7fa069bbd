"""Fixtures of archives."""

import pytest

from tests.support.archives import TEXT, settings, write


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    """A file that holds TEXT in several waves of two blocks."""
    path = tmp_path_factory.mktemp("archive") / "a.cl"
    write(path, TEXT, config=settings(blocks=2))
    return path.read_bytes()
