"""Which device a run takes, where a machine has fewer GPUs than processes, and on a machine without any."""

import pytest
import torch

from harness.errors import UsageError
from harness.machine.ranks import choose_device
from tests.support.commands import ROOT, run_command


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused_with_both_remedies(monkeypatch, wanted):
    # No machine of these tests has a GPU; what is counted is all that decides.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError) as refused:
        choose_device(wanted)
    assert str(refused.value) == (
        f"backend.device={wanted}: 2 process(es) on this machine and 1 GPU(s); use --processes 1 (torchrun: "
        "--nproc-per-node 1) or backend.device=cpu"
    )
    assert choose_device("cpu") == torch.device("cpu")


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"backend\.device=cuda: 1 process"):
        choose_device("cuda")


def test_the_check_of_gpus_says_that_there_is_none():
    done = run_command(f"python -m tests.gpu.check --out {ROOT}/never.json", ROOT)
    assert (done.returncode, done.stdout) == (0, "skipped: no GPU\n"), done.stderr
    assert not (ROOT / "never.json").exists()
