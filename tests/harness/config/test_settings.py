"""Settings as people write them: text stays text, numbers are what they look like, and all else is said in one line."""

from pathlib import Path

import pytest

from eval.teacher.experiment import TeacherConfig
from harness.config.run import dump_config, load_config
from harness.config.settings import setting
from harness.config.written import load_settings
from harness.errors import UsageError
from tests.support.commands import ROOT

DEMO = ROOT / "configs" / "demo.yaml"
# What YAML takes for numbers, flags, dates, nothing, lists, comments and references.
TEXTS = ["007", "1e-4", "no", "12:30:45", "null", "~", "2026-01-01", "0x10", "[a", "{a: b}", "a: b", "#x", "*x", "'q'"]
TEXTS += ["true", "<<", "1_000", ".5", "=", "a #b", "%j", "é"]
NO_NAMES = [
    "..",
    ".",
    "a/b",
    "/",
    "-x",
    "--help",
    "",
    " ",
    "a\nb",
    "a\tb",
    "a\0b",
    "x" * 201,
    "é" * 101,
    "\udcff",
    " a",
]
# Each of eight lines is ten times the one before.
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


def refusal(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_what_was_written_and_is_saved_as_such(tmp_path, text):
    config = load_config(DEMO, [f"name={text}", f"data_dir=x{text}", f"corpus.text_field={text}"])
    assert (config.name, config.data_dir, config.corpus.text_field) == (text, f"x{text}", text)
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert load_settings(TeacherConfig, None, [f"name={text}"]).name == text
    assert load_config(DEMO, [setting("name", text), setting("model.width", 64)]).name == text


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_is_no_directory_inside_its_parent_is_refused(name):
    (line,) = refusal(DEMO, f"name={name}")
    assert line.startswith("name=")
    with pytest.raises(UsageError):
        load_settings(TeacherConfig, None, [f"name={name}"])


@pytest.mark.parametrize("text", ["1e-4", "no", "5", "null", "[a]"])
def test_text_in_yaml_that_yaml_takes_for_something_else_must_be_quoted(tmp_path, text):
    (line,) = refusal(write(tmp_path, f"name: {text}\n"))
    assert "put it in quotes" in line
    assert load_config(write(tmp_path, f"name: '{text}'\n")).name == text


@pytest.mark.parametrize("text", ["007", "010", "-01", "12:30:45", "1:30", "1:30.5"])
def test_numbers_that_yaml_misreads_are_refused(tmp_path, text):
    lines = [*refusal(write(tmp_path, f"seed: {text}\n")), *refusal(DEMO, f"seed={text}")]
    lines += refusal(DEMO, f"train.retrain_at=[{text}]")
    assert len(lines) == 3 and all(f"{text}: YAML reads this as another number" in line for line in lines)


def test_whole_numbers_may_have_an_exponent(tmp_path):
    assert load_config(DEMO, ["corpus.subset_bytes=1e6"]).corpus.subset_bytes == 1_000_000
    assert load_config(write(tmp_path, "seed: 2.5e3\n")).seed == 2500


def test_home_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("data_dir: ~/data\n")
    path = write(tmp_path, "include: ~/base.yaml\nruns_dir: ~/r\ncorpus: {kind: files, path: ~/t, heldout_path: ~/h}\n")
    config = load_config(path, ["eval.split=~/text"])
    found = [config.data_dir, config.runs_dir, config.corpus.path, config.corpus.heldout_path, config.eval.split]
    assert found == [f"{tmp_path}/{name}" for name in ("data", "r", "t", "h", "text")]
    assert load_settings(TeacherConfig, None, ["runs_dir=~/t"]).runs_dir == f"{tmp_path}/t"
    assert "write the whole path" in refusal(path, "runs_dir=~nobody-of-this-name/x")[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=big", "model=big: is a section; set its keys, as model.architecture=..."),
        ("model=null", "is a section"),
        ("online.models=64x2x1", "online.models=64x2x1: must be a list; write [64x2x1]"),
        ("online.models=[64,2]", "must be text"),
        ("seed=null", "has no null; leave the key out"),
        ("seed=1.5", "must be a whole number"),
        ("seed=18446744073709551616", "must be a whole number below 2^63"),
        ("seed=" + "9" * 5000, "not readable"),
        ("train.epochs=.inf", "must be a finite number"),
        ("optimizer.learning_rate=1e400", "must be a finite number"),
        ("optimizer.learning_rate=1e300", "must be a finite number, up to 1e+30"),
        ("backend.timeout_seconds=1e29", "must be above 0 and at most 2,000,000"),
        ("optimizer.clip_norm=big", "must be a number"),
        ("dry_run=maybe", "must be true or false"),
        ("name.x=1", "name is a value, not a section"),
        ("train..epochs=1", "unknown key"),
        ("runs_dir=", "runs_dir=: empty"),
        ("corpus.path=a\0b", "must be UTF-8, without NUL"),
        ("data_dir=${oc.env:NOBODY_SETS_THIS}", "not readable"),
        ("seed=!!python/object/apply:os.getpid []", "not readable"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line_of_our_own_words(override, words):
    (line,) = refusal(DEMO, override)
    assert words in line and "Optional" not in line and len(line) < 500


@pytest.mark.parametrize(
    "text",
    [
        *["include: null", "include: 3", "include: [3]", "include: {a: b}", "include: .", "include: none.yaml"],
        *["model: big", "model:", "seed: ${seed}", "a: &a [*a]", BOMB, "[" * 5000, "? [a]\n: 1", "null: 2", "1: 2"],
        *["seed: 1\nseed: 2", "--- {}\n--- {}", "a: !!set {x}", "model:\n\twidth: 3", 'name: "a\\0b"', "x" * (1 << 21)],
        *[b"\xff\xfes\0", b"name: \xe9", b"\0" * 100],
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, text):
    (line,) = refusal(write(tmp_path, text))
    assert line.isprintable() and len(line) < 500


def test_values_of_the_environment_are_read_on_request(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/scratch")
    monkeypatch.setenv("NUMBER", "12")
    config = load_config(DEMO, ["data_dir=${oc.env:SOMEWHERE}/data", "seed=${oc.env:NUMBER}"])
    assert (config.data_dir, config.seed) == ("/scratch/data", 12)
