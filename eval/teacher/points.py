"""Every student of the teacher-student experiment as a file that a fresh process has decoded."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from eval.codec.gaussian import gaussian_bits
from eval.length import Length
from eval.online.reached import ROOT
from eval.teacher.archive import SMALLEST_SIGMA, target_bytes, write_archive
from eval.teacher.experiment import TeacherConfig, make_data
from eval.teacher.inputs import make_inputs, split_layers
from eval.teacher.step_search import choose_grids, fast_predictions
from eval.teacher.training import Trained, train_students
from harness.errors import RunFailure
from harness.files import write_file
from harness.units import bytes_from_bits

PAPER_WEIGHT_BYTES, PAPER_TARGET_BITS = 4, 32


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherPoint:
    """One student and its file; sizes in bytes."""

    method: str
    loss: str
    num_targets: int
    seed: int
    alpha: float
    """Strength as configured: nats of all targets, or usual updates of a weight."""
    tolerance: float | None
    """Of the pruning; None without it."""
    nonzeros: int
    """Weights that are not 0 in the file."""
    sigma: float
    weights_bytes: int
    """Weights and sigma in the file."""
    targets_bytes: int
    """Targets in the file."""
    header_bytes: int
    """All the rest of the file."""
    ideal_targets_bytes: float
    """What the Gaussian of the rounded student gives the targets, before any coder."""
    unrounded_nonzeros: int
    """Weights that are not 0 in the float32 student."""
    paper_bytes: float
    """The float32 student by the published convention: an ideal length."""
    archive: str
    """Path of the file in the experiment's directory."""
    sha256: str
    """Of the targets, as float32; a fresh process has decoded the same from the file."""

    @property
    def length(self) -> Length:
        """Weights and targets in the file; a point is kept once a fresh process has decoded it."""
        return Length(self.weights_bytes, self.targets_bytes, "decoded")

    @property
    def paper_length(self) -> Length:
        """The published convention."""
        return Length(0, self.paper_bytes, "ideal")


def points_path(config: TeacherConfig, method: str, loss: str, num_targets: int) -> Path:
    """Path of the finished points of a method, loss and number of targets."""
    return config.directory / "points" / f"{method}_{loss}_{num_targets}.json"


def is_measured(config: TeacherConfig, method: str, loss: str) -> bool:
    """Whether all points of a job are measured."""
    return all(points_path(config, method, loss, num_targets).exists() for num_targets in config.targets)


def measure(config: TeacherConfig, method: str, loss: str) -> None:
    """Train and measure what is not finished of a job; prints a line for each number of targets.

    Raises RunFailure where training fails or a file does not decode.
    """
    for num_targets in config.targets:
        path = points_path(config, method, loss, num_targets)
        if path.exists():
            continue
        trained = train_students(config, method, loss, num_targets)
        targets = make_data(config, num_targets).targets.numpy()
        folder = config.directory / "archives" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        points = [_code(config, method, loss, folder, student, targets[student.seed]) for student in trained]
        verify([config.directory / point.archive for point in points], [point.sha256 for point in points])
        path.parent.mkdir(exist_ok=True)
        write_file(path, (json.dumps([asdict(point) for point in points], indent=1) + "\n").encode())
        print(f"{path.stem}: {len(points)} students coded and decoded", flush=True)


def read_points(config: TeacherConfig) -> list[TeacherPoint]:
    """Read all finished points, in the order of the configuration."""
    places = [(m, loss, n) for n in config.targets for m in config.methods for loss in config.losses]
    paths = [points_path(config, *place) for place in places]
    return [TeacherPoint(**record) for path in paths if path.exists() for record in json.loads(path.read_text())]


def verify(archives: list[Path], digests: list[str]) -> None:
    """Decode in a fresh process that is given the archives and nothing else.

    Raises RunFailure where the SHA-256 of targets differs.
    """
    command = [sys.executable, "-m", "eval.teacher.decode", *(str(path.resolve()) for path in archives)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    decoded = [line.split()[0] for line in done.stdout.splitlines()]
    if done.returncode or decoded != digests:
        reason = done.stderr.strip() or "SHA-256 differs"
        raise RunFailure(f"{archives[0].parent}: an archive does not decode to what was coded ({reason})")


def paper_bytes(nonzeros: int, num_targets: int, mse: float) -> float:
    """Count bytes by the published convention: 4 for each non-zero, targets in cells of 2^-32 under a Gaussian.

    Positions and sigma are free.
    """
    variance = max(mse, SMALLEST_SIGMA**2)
    density_bits = math.log2(2 * math.pi * math.e * variance) / 2
    return PAPER_WEIGHT_BYTES * nonzeros + bytes_from_bits(num_targets * (PAPER_TARGET_BITS + density_bits))


def _code(
    config: TeacherConfig, method: str, loss: str, folder: Path, student: Trained, targets: np.ndarray
) -> TeacherPoint:
    layers = split_layers(student.weights.numpy(), config.student)
    inputs = make_inputs(student.seed, len(targets), config.student[0])
    rounded = choose_grids(layers, inputs, targets)
    path = folder / f"seed{student.seed}_alpha{student.alpha:g}_tolerance{student.tolerance}.cl"
    sizes = write_archive(path, student.seed, targets, rounded.integers, rounded.steps, rounded.sigma)
    unrounded_mse = float(np.mean(np.square(targets - fast_predictions(layers, inputs))))
    unrounded_nonzeros = int(student.weights.count_nonzero())
    return TeacherPoint(
        method=method,
        loss=loss,
        num_targets=len(targets),
        seed=student.seed,
        alpha=student.alpha,
        tolerance=student.tolerance,
        nonzeros=sum(int(np.count_nonzero(layer)) for layer in rounded.integers.values()),
        sigma=float(rounded.sigma),
        weights_bytes=sizes.weights_bytes,
        targets_bytes=sizes.targets_bytes,
        header_bytes=sizes.header_bytes,
        ideal_targets_bytes=bytes_from_bits(gaussian_bits(targets, rounded.means, float(rounded.sigma))),
        unrounded_nonzeros=unrounded_nonzeros,
        paper_bytes=paper_bytes(unrounded_nonzeros, len(targets), unrounded_mse),
        archive=str(path.relative_to(config.directory)),
        sha256=hashlib.sha256(target_bytes(targets)).hexdigest(),
    )
