"""Muon and AdamW: their updates, whatever the precision, the batch of matrices and the number of ranks."""

import subprocess
import sys

import pytest
import torch

from harness.machine.hardware import identity, muon_precision
from harness.optim.adamw import AdamW
from harness.optim.muon import ITERATIONS, A, B, C, Muon, assigned, orthogonalised, pieces_of_equal_shape
from tests.support.ranks import Ranks, write_config

SHAPES = ((12, 12), (36, 12), (12, 48), (48, 12), (12, 12))


def published(x: torch.Tensor) -> torch.Tensor:
    """The iteration as its authors print it, in float64."""
    x = x.double().T if x.shape[0] > x.shape[1] else x.double()
    x = x / x.norm()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(12, 12), (36, 12), (12, 48)])
def test_every_precision_iterates_the_published_polynomial(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    expected = published(matrix).T if shape[0] > shape[1] else published(matrix)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        found = orthogonalised(matrix.to(dtype), dtype)
        assert found.dtype == dtype and found.shape == matrix.shape
        assert (found.double() - expected).norm() < tolerance * expected.norm(), dtype


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalised(torch.zeros(3, 5), torch.float32).any()


def test_in_bfloat16_the_updates_are_those_of_pytorchs_muon_bit_by_bit():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon([{"params": ours, "lr": 0.1, "weight_decay": 0.01}], 0.95, torch.bfloat16, rank=0, world_size=1)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.01)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step()
        reference.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_matrices_side_by_side_are_what_each_is_alone():
    torch.manual_seed(0)
    stack = torch.randn(5, 24, 96)
    assert torch.equal(
        orthogonalised(stack, torch.float32), torch.stack([orthogonalised(m, torch.float32) for m in stack])
    )


def test_pieces_and_owners_depend_on_shapes_alone():
    shapes = [torch.Size(shape) for shape in SHAPES]
    assert pieces_of_equal_shape(shapes, 4) == [[0, 4], [1], [2], [3]]
    assert pieces_of_equal_shape(shapes, 1) == [[0], [4], [1], [2], [3]]
    owners = assigned([1, 4, 4, 1, 2], 2)
    assert owners == assigned([1, 4, 4, 1, 2], 2)
    assert sorted(owners[1:3]) == [0, 1] and sum(w for w, o in zip([1, 4, 4, 1, 2], owners, strict=True) if o) == 6


SHARED = """
import os, sys, torch, torch.distributed as dist
from datetime import timedelta
from harness.optim.muon import Muon
shapes = eval(sys.argv[1])
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
torch.manual_seed(0)
start = [torch.randn(shape) for shape in shapes]
gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
results = []
for world in (1, size):
    parameters = [torch.nn.Parameter(p.clone()) for p in start]
    group = {"params": parameters, "lr": 0.1, "weight_decay": 0.01}
    muon = Muon([group], 0.95, torch.float32, rank if world > 1 else 0, world)
    for own in gradients:
        for p, g in zip(parameters, own):
            p.grad = g.clone()
        muon.step()
    results.append(parameters)
assert all(torch.equal(p, q) for p, q in zip(*results)), "other bits"
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("count", [2, 3])
def test_the_bits_do_not_depend_on_the_number_of_ranks_that_share_the_work(tmp_path, count):
    config = write_config(tmp_path)
    with Ranks(count, config, program=["-c", SHARED, repr(SHAPES)]) as job:
        for status, _, errors in job.wait():
            assert status == 0, errors


def test_adamw_takes_the_steps_of_pytorchs():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(37, 8))
    q = torch.nn.Parameter(p.detach().clone())
    untrained = torch.nn.Parameter(torch.randn(3))
    ours = AdamW([{"params": [p, untrained], "lr": 0.1, "weight_decay": 0.01}], (0.9, 0.95))
    theirs = torch.optim.AdamW([q], lr=0.1, weight_decay=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(5):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    assert torch.allclose(p, q, rtol=0, atol=1e-6) and not ours.state[untrained]


def test_a_process_that_trains_does_not_import_the_compiler():
    program = (
        "import sys, torch\n"
        "from harness.config.run import load_config\n"
        "from harness.machine.ranks import Ranks\n"
        "from harness.learner import Learner\n"
        "tiny = ['model.width=32', 'model.layers=1', 'train.batch_sequences=1']\n"
        "config = load_config('configs/wiki-mini.yaml', tiny)\n"
        "learner = Learner(config, 256, Ranks(0, 1, torch.device('cpu')), torch.float32)\n"
        "learner.dry_step()\n"
        "learner.reset()\n"
        "print(sum(p.numel() for group in learner.groups for p in group['params']) == learner.num_parameters)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout == "True\nFalse\n", done.stderr


def test_the_precision_of_muon_is_part_of_a_runs_identity():
    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        expected = str(muon_precision(dtype, cpu)).removeprefix("torch.")
        assert identity(cpu, dtype, ("torch",))["muon_precision"] == expected
    assert muon_precision(torch.float32, cpu) == torch.float32
