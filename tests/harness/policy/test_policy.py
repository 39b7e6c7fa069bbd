"""Runs that learn by a policy: only updates change, the ledger counts all, and the online code is charged with it."""

import numpy as np
import pytest
from safetensors.torch import load_file

from eval.report.record import flat_record, lengths
from harness.policy.weights import Policy
from harness.run.directory import policy_bytes
from tests.support.ranks import finish, rows, write_config

# Of 2,540 bytes in sequences of 64.
SEQUENCES = 40


def write_policy(path, units) -> str:
    path.write_bytes(Policy(np.array(units, dtype=np.uint8)).to_bytes())
    return f"train.policy={path}"


def test_a_policy_changes_what_is_learnt_and_not_what_is_counted(tmp_path):
    config = write_config(tmp_path, finetune_epochs=0)
    even = write_policy(tmp_path / "even.policy", [[16] * SEQUENCES] * 2)
    half = write_policy(tmp_path / "half.policy", [[32, 0] * (SEQUENCES // 2), [0, 32] * (SEQUENCES // 2)])
    for name, settings in (("plain", ()), ("even", (even,)), ("half", (half,))):
        assert [status for status, *_ in finish(1, config, f"name={name}", "prune.rounds=1", *settings)] == [0]
    runs = {name: tmp_path / "runs" / name for name in ("plain", "even", "half")}
    nats = {name: rows(run).column("nats_sum").to_numpy() for name, run in runs.items()}
    assert {len(values) for values in nats.values()} == {SEQUENCES}
    # Before the first update all are equal; then weights that are all 1 only sum in another order.
    assert (nats["half"][:4] == nats["plain"][:4]).all() and not np.allclose(nats["half"], nats["plain"], rtol=1e-3)
    assert nats["even"] == pytest.approx(nats["plain"], rel=1e-3)
    weights = {name: load_file(run / "weights.safetensors")["head.weight"] for name, run in runs.items()}
    assert not weights["half"].equal(weights["plain"])
    assert policy_bytes(runs["plain"]) == 0 and policy_bytes(runs["half"]) == (tmp_path / "half.policy").stat().st_size
    online = {"ideal_bits": 800.0, "policy_bytes": policy_bytes(runs["half"])}
    assert lengths(flat_record({"online": online}))["online"].total_bits == 800 + 8 * policy_bytes(runs["half"])


def test_a_policy_of_another_text_is_refused_before_anything_is_made(tmp_path):
    config = write_config(tmp_path)
    other = write_policy(tmp_path / "other.policy", [[16] * 3])
    ((status, _, error),) = finish(1, config, "name=other", other)
    assert status == 2 and not (tmp_path / "runs" / "other").exists()
    assert "a policy of 3 sequences, and the text has 40" in error and error.count("\n") == 1
    ((status, _, error),) = finish(1, config, "name=other", other, "train.replays=1")
    assert status == 2 and "train.policy=" in error and "not with train.replays" in error
