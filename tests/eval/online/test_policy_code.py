"""Online codes that learn by a policy: a study writes it, a run uses it, and its file holds it and is charged."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval.codec.container import read_sections
from eval.online.file import read_online_file
from eval.report.record import load_reports
from harness.policy.weights import Policy, read_policy
from tests.support.archives import repacked
from tests.support.online import TEXT, refused, run

EXAMPLES, CONTEXT = 12, 64
STUDY = {
    "kind": "policy",
    "learner": "transformer",
    "examples": [EXAMPLES],
    "steps": [4],
    "desired": 8,
    "test": 8,
    "corrupted": 0.5,
    "epochs": 1,
    "learning_rate": 0.5,
    "largest_change": 1.0,
    "model": {"architecture": "published", "width": 8, "layers": 1, "heads": 1, "context": CONTEXT},
}


@pytest.fixture(scope="module")
def policy(place) -> Path:
    """The policy of a study, beside the text that it weighs."""
    text = "".join(
        f"Sentence {i * i} of {i} has many words, and {i * i * i} more of them come after it. " for i in range(50)
    )
    (place / "sentences.txt").write_text(text)
    corpus = {"kind": "files", "path": str(place / "sentences.txt"), "subset_bytes": None, "heldout_bytes": 60}
    (place / "study.yaml").write_text(yaml.safe_dump(STUDY | {"runs_dir": str(place / "runs"), "corpus": corpus}))
    assert run("study", place / "study.yaml", "--index", "0") == 0
    return place / "runs" / "policy" / "policies" / f"n{EXAMPLES}_t4_s0.policy"


@pytest.fixture(scope="module")
def learnt(place, policy) -> Path:
    """A run on the text of the study that learns by its policy, evaluated."""
    corpus = ("corpus.kind=files", f"corpus.path={policy.with_suffix('.txt')}", "corpus.subset_bytes=null")
    settings = (*corpus, "corpus.heldout_bytes=1", "rule.kind=none", "prune.kind=none", "train.precision=fp32")
    assert run("train", place / "config.yaml", "name=learnt", *settings, f"train.policy={policy}") == 0
    assert run("eval", place / "runs" / "learnt", "eval.ideal=true", "eval.split=train", "--quiet") == 0
    return place / "runs" / "learnt"


@pytest.fixture(scope="module")
def file(place, learnt) -> Path:
    """The corpus of that run, sent by its configuration."""
    assert run("send", learnt / "config.yaml", "-o", place / "learnt.clo", "--quiet") == 0
    return place / "learnt.clo"


def test_a_policy_of_a_study_is_in_every_length_of_a_run_and_in_its_file(capsys, learnt, file, policy, tmp_path):
    taken, text = policy.stat().st_size, policy.with_suffix(".txt").read_bytes()
    assert (np.ptp(read_policy(policy.read_bytes(), EXAMPLES).units, axis=1) > 0).all()
    (online,) = (report["online"] for report in load_reports([learnt]))
    assert online["policy_bytes"] == taken
    assert online["bits_per_byte"] * online["raw_bytes"] == pytest.approx(online["ideal_bits"] + 8 * taken)
    # The run and its file are of the same losses; frames and digests take the rest.
    streams = file.stat().st_size - sum(map(len, (read_sections(file)[tag] for tag in ("HEAD", "TOKN", "PLCY"))))
    assert 0 < 8 * streams - online["ideal_bits"] < 1000
    assert run("table", learnt, "--format", "md") == 0
    assert f"learns by, {taken:,} bytes" in capsys.readouterr().out
    assert read_sections(file)["PLCY"] == policy.read_bytes()
    head, config, *_ = read_online_file(file)
    assert "train.policy" not in head.settings and config.train.policy is None
    assert run("receive", file, "-o", tmp_path / "out", "--quiet") == 0
    # All but the held-out byte.
    assert (tmp_path / "out").read_bytes() == text[:-1]


def test_it_is_received_where_only_some_sequences_count(capsys, place, tmp_path):
    weights = np.zeros((2, -(-len(TEXT) // CONTEXT)), dtype=np.uint8)
    weights[0, ::2], weights[1, 1::3] = 16, 200
    policy, file, output = (tmp_path / name for name in ("a.policy", "file.clo", "out"))
    policy.write_bytes(Policy(weights).to_bytes())
    arguments = ("send", place / "config.yaml", place / "text", "--json", "--quiet")
    assert run(*arguments, f"train.policy={policy}", "-o", file) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["policy_bits"] == 8 * policy.stat().st_size
    assert sum(bits for key, bits in report.items() if key.endswith("_bits")) == pytest.approx(8 * file.stat().st_size)
    policy.unlink()
    assert run("receive", file, "-o", output, "--quiet") == 0 and output.read_bytes() == TEXT
    assert run(*arguments, "-o", tmp_path / "even.clo") == 0
    even = json.loads(capsys.readouterr().out)
    assert even["policy_bits"] == 0 and even["aulc_bits"] != report["aulc_bits"]


def test_policies_that_do_not_fit_are_refused_in_a_line(capsys, place, file, tmp_path):
    content, output = file.read_bytes(), tmp_path / "out"
    other = Policy(np.full((1, EXAMPLES + 1), 16, dtype=np.uint8)).to_bytes()
    for name, damage, words in (
        ("cut", lambda section: section[:-3], "malformed policy (damaged)"),
        ("other", lambda section: other, "a policy of 13 sequences, and the text has 12"),
        ("bomb", lambda section: section[:8] + b"\xff\xff\xff\x7f" + section[12:], "more than 268,435,456 weights"),
    ):
        bad = repacked(content, tmp_path / name, lambda _, s, damage=damage: s.update(PLCY=damage(s["PLCY"])))
        assert words in refused(capsys, bad, output)
    gone = repacked(content, tmp_path / "gone", lambda _, sections: sections.pop("PLCY") and None)
    assert "came out otherwise" in refused(capsys, gone, output)
    (tmp_path / "other.policy").write_bytes(other)
    assert (
        run("send", place / "config.yaml", place / "text", f"train.policy={tmp_path / 'other.policy'}", "-o", output)
        == 2
    )
    told = capsys.readouterr().err
    assert "train.policy=" in told and "13 sequences, and the text has 47" in told and told.count("\n") == 1
