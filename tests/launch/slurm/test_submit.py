"""`codelength submit` up to sbatch: job scripts say what was asked for, and what is wrong is said before."""

import subprocess
from pathlib import Path

import pytest

from harness.config.run import dump_config, load_config
from launch.main import main
from launch.slurm.submit import TEMPLATES
from tests.support.commands import ROOT

CONFIG = """
corpus: {kind: wiki-mini, subset_bytes: 20300, heldout_bytes: 1000}
model: {width: 32, layers: 1, heads: 1}
train: {batch_sequences: 16}
"""
SWEEP = "name: three\nconfig: run.yaml\ngrid: {seed: [0, 1, 2]}\n"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with an odd name, a configuration and a sweep; no SLURM in reach."""
    place = tmp_path / "it's $HOME 100%j"
    place.mkdir()
    (place / "run.yaml").write_text(CONFIG)
    (place / "three.yaml").write_text(SWEEP)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", "/nowhere")
    return place


def scripts(capsys, *arguments: str) -> list[str]:
    """The job's script, and those of the jobs that come before it."""
    assert main(["submit", *arguments, "--dry-run"]) == 0
    first = "#!/bin/bash\n"
    return [first + text for text in capsys.readouterr().out.split(first)[1:]]


def dry_run(capsys, *arguments: str) -> str:
    return scripts(capsys, *arguments)[0]


def refusal(capsys, *arguments: str, status: int = 2) -> list[str]:
    assert main(["submit", *arguments]) == status
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def in_shell(script: str, words: str) -> list[str]:
    """What `words` are to the shell below the lines that were filled in."""
    lines = script.splitlines()
    until = next(i for i, line in enumerate(lines) if line.startswith("set -- ")) + 1
    command = "\n".join([*lines[:until], f"printf '%s\\0' {words}"])
    return subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True).stdout.split("\0")[:-1]


def mark_trained(place: Path, *overrides: str) -> Path:
    config = load_config("run.yaml", overrides)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(dump_config(config))
    (config.run_dir / "DONE").touch()
    return config.run_dir


@pytest.mark.parametrize("name", ["pretrain", "sweep", "eval", "data"])
def test_scripts_are_bash_and_say_how_to_use_them(name):
    script = TEMPLATES / f"{name}.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode != 0 and "usage: sbatch" in done.stderr


@pytest.mark.parametrize("name", ["pretrain", "sweep", "data"])
def test_jobs_that_train_or_prepare_save_before_their_end_and_go_on(name):
    lines = directives((TEMPLATES / f"{name}.sbatch").read_text())
    assert {"signal=B:USR1@180", "requeue", "open-mode=append"} <= set(lines)


def test_what_is_asked_for_is_in_the_script(place, capsys):
    sizes = ["--nodes", "4", "--gpus-per-node", "4", "--time", "1-00:00:00", "--mem", "64G"]
    names = ["--partition", "gpu", "--account", "me", "--name", "big"]
    script = dry_run(capsys, "run.yaml", "name=a b", *sizes, *names)
    asked = ["nodes=4", "gpus-per-node=4", "cpus-per-task=32", "time=1-00:00:00", "partition=gpu", "account=me"]
    assert {*asked, "mem=64G", "job-name=big", "dependency=singleton", "requeue"} <= set(directives(script))
    assert len({line.partition("=")[0] for line in directives(script)}) == len(directives(script))
    run_dir = str(place / "runs" / "a b")
    assert in_shell(script, '"$CODELENGTH_PROCESSES" "$@"') == ["4", f"{run_dir}/submit.yaml"]
    assert not (place / "runs").exists()


def test_the_script_is_its_template_but_for_what_is_filled_in(place, capsys):
    script = dry_run(capsys, "run.yaml").splitlines()
    template = (TEMPLATES / "pretrain.sbatch").read_text().splitlines()
    assert [line for line in template if not line.startswith("#SBATCH") and line not in script] == []
    assert len(script) - len(template) < 12


def test_gpus_bring_cpus_and_whole_nodes_their_memory(place, capsys):
    more = ["--qos", "high", "--save-seconds", "300", "--sbatch", "--constraint 'a b' --mail-type=END --requeue"]
    asked = directives(dry_run(capsys, "run.yaml", "--gpus-per-node", "h100:8", "--whole-nodes", *more))
    expected = {"gpus-per-node=h100:8", "cpus-per-task=64", "mem=0", "exclusive", "qos=high", "signal=B:USR1@300"}
    assert expected | {"constraint='a b'", "mail-type=END", "requeue"} <= set(asked)
    asked = directives(dry_run(capsys, "run.yaml", "--gpus-per-node", "2", "--cpus-per-gpu", "3", "--mem", "9G"))
    assert {"gpus-per-node=2", "cpus-per-task=6", "mem=9G"} <= set(asked) and "exclusive" not in asked
    asked = directives(dry_run(capsys, "run.yaml", "--processes-per-node", "2", "--sbatch=--dependency=after:7"))
    assert {"cpus-per-task=2", "dependency=singleton,after:7"} <= set(asked)


@pytest.mark.parametrize("gpus", ["0", "h100", "h100:", ":8", "h100:0", "a b:2", "8:h100"])
def test_gpus_that_cannot_be_asked_for_are_refused(place, capsys, gpus):
    with pytest.raises(SystemExit) as caught:
        main(["submit", "run.yaml", "--gpus-per-node", gpus])
    assert caught.value.code == 2 and "h100:8" in capsys.readouterr().err


def test_commands_and_options_of_srun_come_before_the_job(place, capsys):
    (place / "setup.sh").write_text("module load cuda\nexport X='a b'\n")
    image = "--container-image='my image'"
    options = ["--setup", "setup.sh", "--srun", f"{image} --export=ALL"]
    for script in scripts(capsys, "run.yaml", *options):
        lines = script.splitlines()
        assert lines.index("module load cuda") < lines.index("set -u")
        assert in_shell(script, '"$X"') == ["a b"]
        words = 'eval "o=($CODELENGTH_SRUN)"; printf "%s\\0" "${o[@]}" #'
        assert in_shell(script, f"; {words}")[1:] == ["--container-image=my image", "--export=ALL"]


def test_data_are_prepared_by_a_job_of_their_own_unless_they_are_there(place, capsys):
    asked = ["--nodes", "2", "--gpus-per-node", "4", "--partition", "gpu", "--data-sbatch", "--partition=cpu"]
    training, data = scripts(capsys, "run.yaml", *asked)
    assert "python -m launch data" in data.replace('"${CODELENGTH_PYTHON:-python}"', "python")
    expected = {"nodes=1", "cpus-per-task=32", "partition=cpu", "requeue", "dependency=singleton"}
    assert expected <= set(directives(data)) and "partition=gpu" in directives(training)
    assert not [line for line in directives(data) if line.startswith("gpus")]
    # Two sets of data for three runs.
    axis = "{a: {seed: 1}, b: {seed: 2}, c: {corpus.subset_bytes: 9000}}"
    (place / "three.yaml").write_text(f"name: x\nconfig: run.yaml\ngrid: {{x: {axis}}}\n")
    assert len(scripts(capsys, "--sweep", "three.yaml")) == 3
    assert main(["data", "run.yaml"]) == 0
    capsys.readouterr()
    assert len(scripts(capsys, "run.yaml", *asked)) == 1 and len(scripts(capsys, "--sweep", "three.yaml")) == 2


def test_settings_reach_the_job_as_they_were_written(place, capsys):
    settings = ["data_dir=a 'b' \"c\" $HOME `ls`", "train.batch_sequences=32"]
    script = dry_run(capsys, "--sweep", "three.yaml", "--at-a-time", "2", *settings)
    assert "array=0-2%2" in directives(script)
    assert in_shell(script, '"$@"') == [str(place / "three.yaml"), *settings]


def test_an_evaluation_takes_trained_runs_and_settings(place, capsys):
    run_dir = mark_trained(place, "name=x")
    script = dry_run(capsys, "--eval", str(run_dir), "eval.lanes=8", "--cpus-per-task", "16")
    assert "cpus-per-task=16" in directives(script)
    assert in_shell(script, '"$@"') == [str(run_dir), "eval.lanes=8"]


def test_a_complete_run_is_not_submitted(place, capsys):
    mark_trained(place, "name=x")
    assert main(["submit", "run.yaml", "name=x"]) == 0
    assert "complete" in capsys.readouterr().out


def test_another_configuration_under_an_old_name_is_refused(place, capsys):
    mark_trained(place, "name=x")
    (line,) = refusal(capsys, "run.yaml", "name=x", "seed=1")
    assert "seed: 0 -> 1" in line


def test_all_problems_are_said_before_anything_is_written(place, capsys):
    lines = refusal(capsys, "run.yaml", "train.epoch=1", "model.width=x")
    assert [line.split(":")[1].strip().partition("=")[0] for line in lines] == ["train.epoch", "model.width"]
    assert not (place / "runs").exists()


def test_a_batch_that_does_not_divide_is_refused(place, capsys):
    (line,) = refusal(capsys, "run.yaml", "--nodes", "3")
    assert "train.batch_sequences=16" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "CONFIG"),
        (["--at-a-time", "2", "run.yaml"], "--at-a-time 2"),
        (["--sweep", "three.yaml", "--nodes", "2"], "--nodes 2"),
        (["--sweep", "three.yaml", "--eval", "runs/x"], "choose one"),
        (["--eval", "runs/x"], "runs/x: not a run directory"),
        (["--eval", "eval.lanes=8"], "at least one run directory"),
        (["run.yaml", "--name", "a\nb"], "--job-name 'a\\nb'"),
        (["run.yaml", "--sbatch", "-C a100"], "--sbatch '-C a100': -C: write every option in full"),
        (["run.yaml", "--sbatch", "a100"], "a100: write every option in full"),
        (["run.yaml", "--data-sbatch", "--=1"], "write every option in full"),
        (["run.yaml", "--srun", "--x='"], "not readable as in a shell"),
        (["run.yaml", "--setup", "nowhere.sh"], "--setup nowhere.sh: No such file"),
    ],
)
def test_what_makes_no_job_is_refused_in_one_line(place, capsys, arguments, words):
    (line,) = refusal(capsys, *arguments)
    assert words in line


def test_an_untrained_run_is_not_evaluated(place, capsys):
    run_dir = mark_trained(place, "name=x")
    (run_dir / "DONE").unlink()
    assert "training is not complete" in refusal(capsys, "--eval", str(run_dir))[0]


def test_without_slurm_it_says_so_in_one_line(place, capsys):
    (line,) = refusal(capsys, "run.yaml", status=1)
    assert "sbatch: not found" in line


def test_templates_are_found_from_anywhere():
    assert TEMPLATES == ROOT / "slurm"
