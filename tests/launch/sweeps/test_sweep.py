"""Sweeps: a grid of real runs that is killed and goes on, shows what failed, and ends in one table."""

import csv
import fcntl
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.config.run import dump_config, load_config
from harness.errors import UsageError
from launch.jobs.queue import Job, JobQueue
from launch.main import main
from launch.sweeps.states import slot_environments
from launch.sweeps.sweep_file import read_sweep
from tests.support.commands import ROOT
from tests.support.kinds import unlabelled
from tests.support.processes import Process, python, result_of

COMMITTED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
BASE = """
corpus: {kind: wiki-mini, heldout_bytes: 2000}
model: {width: 32, layers: 1, heads: 1, context: 128}
train: {epochs: 1, finetune_epochs: 0, batch_sequences: 8, precision: fp32}
eval: {lanes: 4, chunk_bytes: 128}
"""
GRID = """
grid:
  subset:
    small: {corpus.subset_bytes: 12300}
    large: {corpus: {subset_bytes: 16300}, seed: 1}
  train.epochs: [1, 2]
"""
NAMES = ["small_epochs-1", "small_epochs-2", "large_epochs-1", "large_epochs-2"]


def write_sweep(folder: Path, text: str, name: str = "tiny") -> Path:
    (folder / "base.yaml").write_text(BASE + f"runs_dir: {folder}/runs\ndata_dir: {folder}/data\n")
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\nconfig: base.yaml\n{text}")
    return path


def start(*arguments: object) -> Process:
    return python("-m", "launch", "sweep", *arguments, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "COLUMNS": "200"})


def sweep(*arguments: object) -> subprocess.CompletedProcess:
    done = result_of(start(*arguments))
    assert "Traceback" not in done.stderr
    return done


def wait_until(holds, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_locked(log: Path) -> bool:
    with log.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def times(run_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(run_dir.rglob("*"))}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess, list[str]]:
    """A sweep of which the first run was made by its index; what that left in its directory."""
    path = write_sweep(tmp_path_factory.mktemp("sweep"), GRID)
    done = sweep(path, "--index", 0)
    return path, done, sorted(entry.name for entry in (path.parent / "runs" / "tiny").iterdir())


@pytest.fixture(scope="module")
def killed(one) -> tuple[Path, dict[Path, int]]:
    """The sweep, killed with SIGKILL while its second run trains, and the files of its first run before that."""
    path = one[0]
    before = times(path.parent / "runs" / "tiny" / NAMES[0])
    process = start(path)
    wait_until((path.parent / "runs" / "tiny" / NAMES[1] / "config.yaml").exists)
    process.kill()
    process.communicate()
    return path, before


@pytest.fixture(scope="module")
def failed(killed) -> tuple[Path, subprocess.CompletedProcess, str]:
    """The same command again, where the last run finds its place taken by another configuration; the list before it."""
    path, run = killed[0], read_sweep(killed[0]).runs[3]
    run.config.run_dir.mkdir(parents=True)
    changed = load_config(path.parent / "base.yaml", [*run.overrides, "seed=7"])
    (run.config.run_dir / "config.yaml").write_text(dump_config(changed))
    listing = sweep(path, "--dry-run").stdout
    return path, sweep(path, "--at-a-time", 2), listing


@pytest.fixture(scope="module")
def finished(failed) -> tuple[Path, subprocess.CompletedProcess, dict[Path, int]]:
    """The same command again, where one run is trained but not evaluated; the files of that run before."""
    path, directory = failed[0], failed[0].parent / "runs" / "tiny"
    shutil.rmtree(directory / NAMES[3])
    (directory / NAMES[2] / "report.json").unlink()
    before = times(directory / NAMES[2])
    return path, sweep(path, "--at-a-time", 2), before


def test_an_index_runs_one_run_and_writes_no_table_while_others_are_missing(one):
    assert one[1].returncode == 0, one[1].stderr
    assert one[2] == [NAMES[0], f"{NAMES[0]}.log"]


def test_a_killed_sweep_goes_on_and_leaves_finished_runs_alone(killed, failed):
    path, done, _ = failed
    directory = path.parent / "runs" / "tiny"
    assert times(directory / NAMES[0]) == killed[1]
    assert "1 of 4 runs are finished already" in done.stdout and f"start    {NAMES[0]}" not in done.stdout
    for name in NAMES[:3]:
        assert json.loads((directory / name / "report.json").read_text())["offline"]["verified"] is True


def test_what_a_killed_sweep_left_running_is_not_trained_twice(failed):
    log = (failed[0].parent / "runs" / "tiny" / f"{NAMES[1]}.log").read_text()
    assert sum(line.startswith("$ ") and " train " in line for line in log.splitlines()) == 1


def test_a_failed_run_is_reported_and_the_others_go_on(failed):
    path, done, listing = failed
    directory = path.parent / "runs" / "tiny"
    assert [line.split()[2] for line in listing.splitlines() if "epochs-" in line][2:] == ["new", "changed"]
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    reason = f"{directory}/{NAMES[3]}: this run was started with another configuration"
    assert done.stderr.startswith(f"codelength: {NAMES[3]}: {reason}")
    assert done.stderr.endswith(f"(see {directory}/{NAMES[3]}.log)\n")
    assert f"FAILED   {NAMES[3]}" in done.stdout and f"done     {NAMES[2]}" in done.stdout
    assert "Sweep tiny: 3 of 4 runs" in done.stdout


def test_a_run_that_is_only_trained_is_only_evaluated(finished):
    path, done, before = finished
    assert done.returncode == 0, done.stderr
    assert "2 of 4 runs are finished already" in done.stdout
    run_dir = path.parent / "runs" / "tiny" / NAMES[2]
    after = times(run_dir)
    for name in ("weights.safetensors", "config.yaml", "metrics.jsonl", "DONE"):
        assert after[run_dir / name] == before[run_dir / name]
    assert (run_dir / "report.json").exists()


def test_the_table_has_a_row_a_run_with_its_axes_and_marks_the_best(finished):
    path, done, _ = finished
    directory = path.parent / "runs" / "tiny"
    rows = list(csv.DictReader((directory / "table.csv").open()))
    labels = [("small", "1"), ("small", "2"), ("large", "1"), ("large", "2")]
    assert [(row["axis_subset"], row["axis_train.epochs"]) for row in rows] == labels
    assert [row["run"] for row in rows] == NAMES
    reports = [json.loads((directory / name / "report.json").read_text()) for name in NAMES]
    assert [int(row["total_bytes"]) for row in rows] == [report["offline"]["total_bytes"] for report in reports]
    best = min(int(row["total_bytes"]) for row in rows)
    assert [row["is_best"] == "True" for row in rows] == [int(row["total_bytes"]) == best for row in rows]
    markdown = (directory / "table.md").read_text()
    assert (
        "| subset | train.epochs | online bits/byte (ideal) |" in markdown
        and unlabelled(markdown) == []
        and f"**{best:,}**" in markdown
    )
    assert "Sweep tiny: 4 of 4 runs" in done.stdout and not list(directory.glob("*.tmp"))


def test_a_finished_sweep_does_nothing_but_write_its_table(finished):
    path, directory = finished[0], finished[0].parent / "runs" / "tiny"
    before = [times(directory / name) for name in NAMES]
    (directory / "table.md").unlink()
    done = sweep(path, "--index", 1)
    assert done.returncode == 0 and (directory / "table.md").exists()
    assert [times(directory / name) for name in NAMES] == before


def test_count_and_dry_run_start_nothing(tmp_path, capsys):
    path = write_sweep(tmp_path, GRID)
    assert main(["sweep", str(path), "--count"]) == 0 and capsys.readouterr().out == "4\n"
    assert main(["sweep", str(path), "--dry-run", "optimizer.clip_norm=0.5", "name=other"]) == 0
    listing = capsys.readouterr().out
    assert "Sweep other" in listing and "optimizer.clip_norm=0.5" in listing
    assert [line.split()[:3] for line in listing.splitlines() if "epochs-" in line] == [
        [str(index), name, "new"] for index, name in enumerate(NAMES)
    ]
    assert "corpus.subset_bytes=16300 seed=1 train.epochs=2" in listing
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


def test_the_last_words_of_a_run_are_found_above_those_of_torchrun(tmp_path):
    path = write_sweep(tmp_path, "settings: [corpus.subset_bytes=12300]\ngrid: {seed: [1]}\n")
    run_dir = tmp_path / "runs" / "tiny" / "seed-1"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text("name: other\n")
    done = sweep(path, "--processes", 2)
    assert done.returncode == 1
    assert done.stderr.startswith(f"codelength: seed-1: {run_dir}: this run was started with another configuration")
    assert "FAILED   seed-1" in done.stdout


def test_a_stopped_sweep_saves_its_runs_and_leaves_no_process(tmp_path):
    path = write_sweep(tmp_path, "settings: {corpus.subset_bytes: 12300, train.epochs: 3000}\ngrid: {seed: [1, 2]}\n")
    process = start(path)
    directory = tmp_path / "runs" / "tiny"
    wait_until(lambda: (directory / "seed-1" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "codelength: stopped; what was running has been told to save; the same command goes on\n"
    assert list((directory / "seed-1" / "checkpoints").glob("step-*/COMMITTED"))
    assert not is_locked(directory / "seed-1.log")
    assert not (directory / "seed-2").exists() and not (directory / "seed-2.log").exists()


def test_a_run_that_another_process_works_on_is_waited_for(tmp_path):
    path = write_sweep(tmp_path, "settings: [corpus.subset_bytes=12300]\ngrid: {seed: [1]}\n")
    log = tmp_path / "runs" / "tiny" / "seed-1.log"
    log.parent.mkdir(parents=True)
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = start(path)
        wait_until(lambda: "waiting" in process.printed())
        process.send_signal(signal.SIGTERM)
        printed, err = process.communicate(timeout=30)
        assert f"waiting  seed-1: another process is at work on it, see {log}\n" in printed
        assert not (log.parent / "seed-1").exists()
        assert "stopped" in err and process.returncode == 1


def test_a_run_that_ends_well_before_its_end_was_asked_to_stop_and_is_not_repeated(tmp_path, capsys):
    job = Job(name="a", log_path=tmp_path / "a.log", next_command=lambda: ["echo", "saved"])
    assert JobQueue([job], [{}]).run() == {}
    assert "stopped  a  1/1 in " in capsys.readouterr().out
    assert (tmp_path / "a.log").read_text() == "$ echo saved\nsaved\n"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("grid: {rule.alhpa: [0.1, 0.1]}", (), "grid.rule.alhpa: two values are named alhpa-0.1"),
        ("grid: {modle.width: [32]}", (), "modle.width=32: unknown key; known here: name"),
        ("grid: {seed: [1, 2]}\nsettings: {modle.width: 3}", (), "modle.width=3: unknown key; known here: name"),
        ("grid: {model.heads: [1, 5]}", (), "(run heads-5)"),
        ("grid: {seed: []}", (), "grid.seed=[]: must be a key of the configuration with a list"),
        ("grid: {seed: 3}", (), "grid.seed=3: must be a key of the configuration with a list"),
        ("grid: {a: {b: 3}}", (), "grid.a={'b': 3}: must be a key"),
        ("grid: {a: {b/c: {seed: 3}}}", (), "grid.a: b/c: must be a plain name"),
        ("grid: {}", (), "grid={}: must be a mapping of at least one axis"),
        ("{}", (), "grid=None: must be"),
        ("grid: {seed: [1]}\ngird: 3", (), "gird: unknown key; known here: name, config, settings, grid"),
        ("grid: {seed: [1]}\nsettings: 3", (), "settings=3: must be a mapping of settings, or a list"),
        ("grid: {seed: [1]}\nsettings: {seed: 2}", (), "seed=2: the axis seed of the grid sets seed"),
        ("grid: {seed: [1]}", ("seed=2",), "seed=2: the axis seed of the grid sets seed"),
        ("grid: {seed: [1]}", ("nonsense",), "nonsense: an override must look like key=value"),
        ("grid: {seed: [1]}", ("dry_run=true",), "dry_run=true: would train nothing; use --dry-run"),
        ("grid: {seed: [1]}", ("name=a/b",), "name=a/b: must be a plain name"),
        ("grid: {seed: [1]}", ("name=..",), "name=..: must be a plain name"),
        ("grid: {seed: [1]}", ("name=-x",), "name=-x: must be a plain name"),
        ("grid: {seed: [1]}", (f"name={'x' * 300}",), "must be a plain name"),
        ("grid: {corpus.text_field: [no, body]}", (), "corpus.text_field=False: must be text"),
        ("grid: {a: {x: {corpus.text_field: 1e-4}}}", (), "corpus.text_field=0.0001: must be text"),
        ("grid: {a: {yes: {seed: 3}}}", (), "grid.a: True: must be text"),
        ("grid: {seed: [1]}\nsettings: {data_dir: 5}", (), "settings.data_dir=5: must be text"),
        ("grid: {seed: [007]}", (), "007: YAML reads this as another number"),
        ("grid: {seed: [1]}\nsettings: [name=x]", (), "settings: name=x: the runs are named by their settings"),
        ("grid: {name: [a]}", (), "grid.name: name: belongs to the whole sweep"),
        ("grid: {seed: [1], x: {y: {seed: 2}}}", (), "grid.x: seed: the axis seed sets it already"),
        ("grid: {a: {x: {seed: 1}, x_y: {seed: 2}}, b: {y_z: {rule.ramp: 0}, z: {rule.ramp: 1}}}", (), "x_y_z"),
        (f"grid: {{seed: {list(range(1001))}}}", (), "grid: 1,001 runs; at most 1,000"),
        ("grid: {seed: [1, 2}", (), "not readable as YAML"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_starts(tmp_path, text, overrides, expected):
    path = write_sweep(tmp_path, text if text != "{}" else "")
    with pytest.raises(UsageError) as caught:
        read_sweep(path, overrides)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_mistakes_of_several_runs_are_gathered_each_once(tmp_path, capsys):
    path = write_sweep(tmp_path, "grid: {model.heads: [5, 7, 1], modle.x: [1], rule.ramp: [2, 0]}\n")
    assert main(["sweep", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) == 4
    assert [line for line in lines if "modle.x" in line and "(run" not in line]
    assert [line for line in lines if "rule.ramp=2" in line and line.endswith("(run heads-5_x-1_ramp-2 and 2 more)")]
    assert not (tmp_path / "runs").exists()


def test_a_missing_base_and_a_missing_sweep_are_one_line(tmp_path, capsys):
    path = write_sweep(tmp_path, "grid: {seed: [1, 2]}\n")
    (tmp_path / "base.yaml").unlink()
    for missing in (path, tmp_path / "none.yaml"):
        assert main(["sweep", str(missing)]) == 2
        words = capsys.readouterr().err
        assert len(words.splitlines()) == 1 and "no such" in words


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--index", 4), "--index 4: the runs of tiny are 0 to 3"),
        (("--index", "x"), "x: must be a whole number, 0 or more"),
        (("--at-a-time", 0), "0: must be a whole number, at least 1"),
        (("--processes", 3), "train.batch_sequences=8: must be a multiple of"),
    ],
)
def test_a_bad_option_is_refused_before_anything_starts(tmp_path, capsys, arguments, expected):
    try:
        status = main(["sweep", str(write_sweep(tmp_path, GRID)), *map(str, arguments)])
    except SystemExit as exit:
        status = exit.code
    assert status == 2 and expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


def test_values_reach_the_runs_as_they_are_written(tmp_path):
    text = """
grid:
  optimizer.betas: [[0.9, 0.95], [0.8, 0.99]]
  rule.alpha: [1e-7]
  corpus.path: ["a folder/x: y"]
  corpus.kind: [files]
  train.micro_batch_sequences: [null]
"""
    runs = read_sweep(write_sweep(tmp_path, text)).runs
    assert runs[0].name == "betas-0.9,0.95_alpha-1e-07_path-afolder_x_y_kind-files_micro_batch_sequences-null"
    for run, betas in zip(runs, ([0.9, 0.95], [0.8, 0.99]), strict=True):
        config = load_config(tmp_path / "base.yaml", run.overrides)
        assert config == run.config
        assert (list(config.optimizer.betas), config.rule.alpha, config.corpus.path) == (betas, 1e-7, "a folder/x: y")
        assert config.train.micro_batch_sequences is None
        assert (config.name, config.run_dir.parent) == (run.name, tmp_path / "runs" / "tiny")


def test_runs_side_by_side_get_gpus_of_their_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    shares = [slot["CUDA_VISIBLE_DEVICES"] for slot in slot_environments(2, 2, num_gpus=4)]
    assert shares == ["4,5", "6,7"]
    assert all("CUDA_VISIBLE_DEVICES" not in slot for slot in slot_environments(2, 2, num_gpus=0))
    with pytest.raises(UsageError, match="needs 6 GPUs and there are 4"):
        slot_environments(3, 2, num_gpus=4)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_sweep_is_valid(path):
    assert read_sweep(path).name == path.stem
