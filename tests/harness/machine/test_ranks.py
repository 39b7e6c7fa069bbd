"""Which rank a process is: what the environment says badly is refused in one line, before anything is prepared."""

import os

import pytest

from harness.errors import RunFailure
from harness.machine.ranks import joined_ranks
from harness.train import main
from tests.support.commands import ROOT

ALONE = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}


@pytest.fixture
def clean(monkeypatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_")) or name.endswith("RANK")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a whole number from 1"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            "RANK=2: must be below WORLD_SIZE=2",
        ),
        ({"RANK": "1"}, "RANK=1: must be below WORLD_SIZE=1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK=-1: must be a whole number"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE=: must be a whole number"),
        (ALONE | {"SLURM_PROCID": "0"}, "srun has started this command 8 times"),
    ],
)
def test_a_place_among_others_that_cannot_be_is_one_line(clean, tmp_path, capsys, environment, words):
    for name, value in environment.items():
        clean.setenv(name, value)
    clean.chdir(tmp_path)
    assert main([str(ROOT / "configs" / "demo.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and list(tmp_path.iterdir()) == []


def test_of_many_tasks_of_srun_the_first_says_what_is_wrong(clean, capsys):
    for name, value in (ALONE | {"SLURM_PROCID": "3"}).items():
        clean.setenv(name, value)
    assert main([str(ROOT / "configs" / "demo.yaml")]) != 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", [{"SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"}, {"SLURM_STEP_ID"}])
def test_a_batch_script_and_a_step_of_one_task_are_no_ranks(clean, names):
    """A script with many tasks a node may start torchrun once."""
    for name, value in {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_STEP_ID": "0"}.items():
        if name in names:
            clean.setenv(name, value)
    with joined_ranks(5.0) as ranks:
        assert ranks.world_size == 1


@pytest.mark.parametrize("address", ["no-such-machine.invalid", "x" * 70, "a b"])
def test_an_address_that_is_none_is_one_line(clean, address):
    place = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": address, "MASTER_PORT": "29500"}
    for name, value in place.items():
        clean.setenv(name, value)
    # A run with DeepSpeed, earlier in this process, leaves its group of one rank.
    clean.setattr("torch.distributed.is_initialized", lambda: False)
    with pytest.raises(RunFailure, match=f"rank 1: MASTER_ADDR={address}") as caught, joined_ranks(5.0):
        pass
    assert "\n" not in str(caught.value)
