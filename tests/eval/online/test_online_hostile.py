"""Online codes that are damaged, foreign or made to mislead, and folders that are not this program's: a line each."""

import os
from dataclasses import replace

import pytest

from eval.online.file import pack_segments, read_online_file, read_segments
from eval.online.job import _adopt
from tests.support.archives import repacked
from tests.support.online import refused, run


def test_weights_or_text_that_differ_name_their_segment(capsys, tmp_path, sent):
    _, _, _, segments = read_online_file(sent)
    second = len(pack_segments(segments[:1]))

    def flip(at):
        def change(head, sections):
            changed = bytearray(sections["SEGM"])
            changed[at] ^= 1
            sections["SEGM"] = bytes(changed)

        return change

    weights = refused(capsys, repacked(sent.read_bytes(), tmp_path / "w.clo", flip(second)), tmp_path / "out")
    assert "segment 1 (steps 3 to 5)" in weights and "the weights" in weights
    text = refused(capsys, repacked(sent.read_bytes(), tmp_path / "t.clo", flip(second + 4)), tmp_path / "out")
    assert "segment 1 " in text and "the text of rank 0" in text
    stream = refused(capsys, repacked(sent.read_bytes(), tmp_path / "s.clo", flip(second + 11)), tmp_path / "out")
    assert "segment 1 " in stream


def with_stream(change):
    """A change of a file of one rank: `change` gives the stream of the second segment."""

    def apply(head, sections):
        first, second, *others = read_segments(sections["SEGM"], 1)
        (part,) = second.parts
        changed = replace(second, parts=[replace(part, stream=change(part.stream))])
        sections["SEGM"] = pack_segments([first, changed, *others])

    return apply


@pytest.mark.parametrize("change", [lambda s: s[:-4], lambda s: s[:-8], lambda s: s + bytes(4), lambda s: s + s * 9])
def test_a_stream_that_ends_elsewhere_than_its_text_is_refused(capsys, tmp_path, sent, change):
    message = refused(capsys, repacked(sent.read_bytes(), tmp_path / "end.clo", with_stream(change)), tmp_path / "out")
    assert "segment 1 (steps 3 to 5)" in message


def test_steps_that_would_fill_the_memory_are_refused_before_they_are_counted(capsys, tmp_path, sent):
    def claim(head, _):
        head.update(num_tokens=10**8, raw_bytes=10**8)
        head["settings"]["train.batch_schedule"] = [[0, 1]]

    many = repacked(sent.read_bytes(), tmp_path / "many.clo", claim)
    assert "memory" in refused(capsys, many, tmp_path / "out", "--max-memory", "1G")


def test_a_stream_that_is_no_words_is_refused_before_anything_is_started(capsys, tmp_path, sent):
    odd = repacked(sent.read_bytes(), tmp_path / "odd.clo", with_stream(lambda s: s[:-1]))
    assert "malformed segments" in refused(capsys, odd, tmp_path / "out")


def test_a_damaged_foreign_or_missing_file_is_one_line(capsys, tmp_path, sent):
    content, bad = sent.read_bytes(), tmp_path / "bad.clo"
    for damaged in (
        content[:-1],
        content[:100],
        b"",
        b"PK" + content[2:],
        content[:500] + bytes([content[500] ^ 1]) + content[501:],
    ):
        bad.write_bytes(damaged)
        refused(capsys, bad, tmp_path / "out")
    refused(capsys, tmp_path / "none.clo", tmp_path / "out")
    other = repacked(sent.read_bytes(), tmp_path / "other.clo", lambda head, sections: sections.pop("SEGM"))
    assert "codelength send" in refused(capsys, other, tmp_path / "out")
    assert run("decompress", sent, "-o", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


HOSTILE = {
    "an unknown key": lambda head, _: head["settings"].update({"model.dropout": 0.1}),
    "a value from elsewhere": lambda head, _: head["settings"].update({"model.width": "${oc.env:HOME}"}),
    "a path": lambda head, _: head["settings"].update({"data_dir": "/tmp"}),
    "a huge model": lambda head, _: head["settings"].update({"model.width": 10**6}),
    "a bad value": lambda head, _: head["settings"].update({"train.epochs": -1}),
    "a huge text": lambda head, _: head.update(num_tokens=10**12),
    "no such text": lambda head, _: head.update(num_tokens=-1),
    "a word for a number": lambda head, _: head.update(raw_bytes="3000"),
    "many ranks": lambda head, _: head["environment"].update(world_size="99999999999999999999"),
    "more ranks than streams": lambda head, _: head["environment"].update(world_size="65536"),
    "5,000 digits": lambda head, _: head["environment"].update(world_size="9" * 5000),
    "a huge batch": lambda head, _: head["settings"].update({"train.batch_sequences": 1 << 21}),
    "a huge context": lambda head, _: head["settings"].update({"model.context": 1 << 30}),
    "a huge overlap": lambda head, _: head["settings"].update({"train.order": "streams", "model.overlap": 1 << 30}),
    "many models": lambda head, _: head["settings"].update({"online.models": ["16x1x1"] * 5000}),
    "a seed without end": lambda head, _: head["settings"].update(seed=1 << 70),
    "a rate without end": lambda head, _: head["settings"].update({"optimizer.learning_rate": 1e300}),
    "a rate that is none": lambda head, _: head["settings"].update({"optimizer.learning_rate": float("nan")}),
    "a strength without end": lambda head, _: head["settings"].update({"rule.alpha": 1e200}),
    "steps without end": lambda head, _: head["settings"].update({"online.checkpoint_steps": 1 << 62}),
    "epochs without end": lambda head, _: head["settings"].update({"train.retrain_epochs": 1e12}),
    "short segments": lambda head, _: head["settings"].update({"online.segment_steps": 1}),
    "more text than tokens": lambda head, _: head.update(raw_bytes=1 << 39),
    "no rank": lambda head, _: head["environment"].update(world_size="0"),
    "another key": lambda head, _: head.update(more=1),
    "a missing key": lambda head, _: head.pop("sha256"),
    "another size": lambda head, _: head.update(raw_bytes=2999),
    "another text": lambda head, _: head.update(sha256="0" * 64),
    "a longer text": lambda head, _: head.update(num_tokens=4000),
    "segments cut short": lambda _, sections: sections.update(SEGM=sections["SEGM"][:-1]),
    "a segment too few": lambda _, sections: sections.update(SEGM=b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_made_to_mislead_is_one_line(capsys, tmp_path, sent, name):
    refused(capsys, repacked(sent.read_bytes(), tmp_path / "hostile.clo", HOSTILE[name]), tmp_path / "out")


@pytest.mark.parametrize("content", [[], ["STOPPED", "notes"], ["checkpoints/step-00000003/COMMITTED"]])
def test_a_folder_of_somebody_else_is_neither_used_nor_removed(capsys, place, tmp_path, sent, content):
    for name, arguments in (("out", ["receive", sent]), ("a.clo", ["send", place / "config.yaml", place / "text"])):
        folder = tmp_path / f"{name}.part"
        for path in (folder, *(folder / entry for entry in content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if path == folder else path.write_text("mine")
        assert run(*arguments, "-o", tmp_path / name, "--quiet") == 2
        message = capsys.readouterr().err
        assert f"{folder}: not made by this program" in message and message.count("\n") == 1
        assert {path for path in folder.rglob("*") if path.is_file()} == {folder / entry for entry in content}
        assert not (tmp_path / name).exists()


def test_what_somebody_has_laid_into_the_folder_is_left_there(place, tmp_path, sent):
    folder = tmp_path / "out.part"
    _adopt(folder)
    (folder / "notes").write_text("mine")
    assert run("receive", sent, "-o", tmp_path / "out", "--quiet") == 0
    assert [path.name for path in folder.iterdir()] == ["notes"]


def test_many_processes_are_not_started_because_a_file_says_so(capsys, place, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert run("send", place / "config.yaml", tmp_path / "empty", "-o", tmp_path / "a.clo", "--quiet") == 0
    most = max(8, os.cpu_count() or 1)

    capsys.readouterr()

    def many(head, _):
        head["environment"].update(world_size=str(4 * most))
        head["settings"].update({"train.batch_sequences": 8 * most})

    message = refused(
        capsys, repacked((tmp_path / "a.clo").read_bytes(), tmp_path / "many.clo", many), tmp_path / "out"
    )
    assert f"add --processes {4 * most}" in message


def test_memory_that_is_not_allowed_is_not_taken(capsys, tmp_path, sent):
    assert "--max-memory allows 0.1 GB" in refused(capsys, sent, tmp_path / "out", "--max-memory", "100M")
    assert run("receive", sent, "-o", tmp_path / "out", "--quiet", "--max-memory", "4G") == 0
