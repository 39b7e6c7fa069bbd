"""Fixtures of online codes."""

from pathlib import Path

import pytest
import yaml

from tests.support.online import CONFIG, LONG, TEXT, run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a configuration and texts."""
    folder = tmp_path_factory.mktemp("online")
    content = yaml.safe_load(CONFIG) | {"runs_dir": f"{folder}/runs", "data_dir": f"{folder}/data"}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    (folder / "text").write_bytes(TEXT)
    (folder / "long").write_bytes(LONG)
    return folder


@pytest.fixture(scope="module")
def sent(place) -> Path:
    """TEXT, sent by one process."""
    assert run("send", place / "config.yaml", place / "text", "-o", place / "text.clo", "--quiet") == 0
    return place / "text.clo"
