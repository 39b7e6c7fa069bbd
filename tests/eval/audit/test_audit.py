"""`codelength audit` tells settings that keep every bit from those that do not."""

import numpy as np
import pytest

from eval.audit.audit import Setting, _compare, audit, block, settings
from harness.config.run import load_config
from harness.errors import RunFailure
from launch.main import main
from tests.support.commands import ROOT

OVERRIDES = ["model.width=32", "model.layers=1", "model.context=64", "eval.chunk_bytes=64", "train.batch_sequences=4"]
CONFIG = str(ROOT / "configs" / "wiki-mini.yaml")
BROKEN = Setting("broken", {"PYTHONHASHSEED": "none"})
COMPARED = [
    Setting("reference"),
    Setting("again"),
    Setting("one lane", lanes=0.0),
    Setting("two processes", processes=2),
    Setting("no vector instructions", {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
    # Python itself refuses to start.
    BROKEN,
]


@pytest.fixture(scope="module")
def findings() -> dict:
    config = load_config(CONFIG, OVERRIDES)
    found = audit(config, [CONFIG, *OVERRIDES], COMPARED, lambda text: None)
    return {finding.name: finding for finding in found}


def test_the_same_setting_keeps_every_bit(findings):
    for name in ("reference", "again"):
        assert findings[name].step_difference == findings[name].tables_differing == 0
        assert findings[name].first_difference == ""


def test_other_kernels_change_the_step(findings):
    # Not everywhere the tables: MKL takes its limit on processors by Intel alone.
    assert findings["no vector instructions"].step_difference > 0


def test_tables_that_differ_are_counted_and_the_first_is_shown(tmp_path):
    # Whether another shape or kernel changes tables is the machine's affair; these are changed by hand.
    tables = np.full((5, 4, 3), 1 << 20, dtype=np.uint32)
    changed = tables[:, :2].copy()
    changed[3, 1, 2] += 7
    for folder, floats in (("0", tables), ("1", changed)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "float.npy", floats)
        np.save(tmp_path / folder / "portable.npy", tables)
        (tmp_path / folder / "done.json").write_text('{"step_difference": 0.0}')
    found = _compare("by hand", tmp_path / "0", tmp_path / "1")
    # Only lanes that both have are compared.
    assert found.tables_differing == 1 / 10 and found.portable_differing == 0
    assert found.first_difference == "position 3, lane 1: entry 2 is 1,048,583 instead of 1,048,576 of 2^24"


def test_two_processes_step_with_other_shapes_but_predict_the_same(findings):
    assert findings["two processes"].tables_differing == 0


def test_the_portable_predictor_is_the_same_in_every_setting(findings):
    assert all(finding.portable_differing == 0 for finding in findings.values())


def test_the_table_has_a_row_a_setting(findings):
    table = block(list(findings.values()))
    assert [row[0] for row in table.rows] == [setting.name for setting in COMPARED]
    assert table.rows[1][1:] == ["same bits", "same bits", "", "same bits"]


def test_a_batch_that_two_ranks_cannot_share_leaves_them_out():
    assert not any(setting.processes > 1 for setting in settings(batch_sequences=3))
    assert any(setting.processes > 1 for setting in settings(batch_sequences=4))


def test_a_setting_that_cannot_be_computed_says_why_and_the_first_one_must(findings):
    assert [name for name, finding in findings.items() if finding.error] == ["broken"]
    assert "impossible: " in block([findings["broken"]]).rows[0][1]
    with pytest.raises(RunFailure, match="broken: cannot be computed"):
        audit(load_config(CONFIG, OVERRIDES), [CONFIG, *OVERRIDES], [BROKEN], lambda text: None)


def test_the_command_refuses_what_it_does_not_know(capsys):
    assert main(["audit", CONFIG, "model.depth=3"]) == 2
    assert "model.depth" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["audit", CONFIG, "--format", "pdf"])
