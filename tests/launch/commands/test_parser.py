"""The command line as a whole: its help names every command under its family, and shells complete them."""

import re
import subprocess
import sys

import pytest

from launch.commands.parser import FAMILIES, make_parser
from launch.main import main
from tests.support.commands import ROOT, run_command

COMMANDS = {
    *(
        "init",
        "data",
        "train",
        "eval",
        "table",
        "labels",
        "plot",
        "sweep",
        "compress",
        "decompress",
        "send",
        "receive",
        "audit",
    ),
    *("curve", "crossover", "study", "plan", "doctor", "completion", "submit"),
}


def test_the_help_names_every_command_under_its_family(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert set(re.findall(r"^  (\w+) ", printed.partition("runs:")[2], re.MULTILINE)) == COMMANDS
    assert re.findall(r"^([a-z ]+):$", printed, re.MULTILINE)[2:] == list(FAMILIES)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_tells_its_flags_in_a_moment(capsys, command):
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args([command, "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"usage: codelength {command} ")


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nfrom launch.main import main\ntry:\n main(['--help'])\nexcept SystemExit:\n print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pyarrow", "matplotlib"} & {*done.stdout.split()}


def test_a_shell_completes_commands():
    script = 'eval "$(codelength completion bash)"; complete -p codelength; COMP_WORDS=(codelength de); COMP_CWORD=1; '
    done = run_command(f"{script} _shtab_codelength; echo ${{COMPREPLY[@]}}", ROOT)
    assert "complete" in done.stdout and done.stdout.splitlines()[-1] == "decompress", done.stderr
