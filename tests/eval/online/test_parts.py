"""A text in parts: trained, sent and received in shares that follow from what was coded, by one rank or two."""

import csv
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from eval.codec.permutation import DocumentOrder
from eval.online.file import read_online_file
from eval.report.parts import part_records
from harness.config.run import load_config
from harness.corpus.prepared import open_data
from harness.data.parts import Parts
from harness.errors import UsageError
from harness.run.checkpoint import committed_checkpoints
from harness.run.ledger import read_online_code
from harness.train import train_run
from launch.sweeps.sweep_file import read_sweep
from tests.support.archives import repacked
from tests.support.commands import ROOT
from tests.support.online import command, ended, refused, run
from tests.support.ranks import Ranks, assert_same_run, finish

CONFIG = """
corpus: {kind: files, parts: [a, b, c], subset_bytes: 2101, heldout_bytes: 300}
model: {width: 16, layers: 1, heads: 1, context: 16}
train: {batch_sequences: 2, log_every_steps: 9, precision: fp32, shares: ado, ado_start: 40, ado_every: 10}
optimizer: {kind: adamw, warmup_tokens: 512}
rule: {kind: none}
prune: {kind: none}
eval: {chunk_bytes: 16, ideal: true}
online: {segment_steps: 16}
"""
EVERYTHING = ("train.last=[b]", "train.untrained=[c]", "train.replays=1", "train.batch_schedule=[[0,4],[200,32]]")
SETTINGS = {
    "ado": (),
    "everything": (*EVERYTHING, "online.ema=0.9"),
    "weights": ("train.shares=[[0,1,1,1],[500,1,8,1]]", "train.untrained=[b]", "train.order=sequential"),
    "held back": ("train.shares=natural", "train.last=[a]", "train.untrained=[c]", "train.retrain_at=[0.3]"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "text" / "b").mkdir(parents=True)
    license_text = (ROOT / "LICENSE").read_bytes()
    (folder / "text" / "a").write_bytes(license_text[:4000])
    (folder / "text" / "b" / "code.txt").write_bytes((ROOT / "harness" / "trainer.py").read_bytes())
    (folder / "text" / "c").write_bytes(np.random.default_rng(0).bytes(4000))
    content = yaml.safe_load(CONFIG) | {"runs_dir": f"{folder}/runs", "data_dir": f"{folder}/data"}
    content["corpus"]["path"] = f"{folder}/text"
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def text_of(place: Path) -> bytes:
    data = open_data(load_config(place / "config.yaml"))
    return data.tokenizer.decode(data.train.tokens)


@pytest.mark.parametrize("name", SETTINGS)
def test_parts_in_any_shares_come_back(place, tmp_path, name):
    file, output = tmp_path / "file.clo", tmp_path / "out"
    assert run("send", place / "config.yaml", *SETTINGS[name], "-o", file, "--quiet") == 0
    settings = read_online_file(file)[0].settings
    assert not any(key.startswith("corpus.") for key in settings)
    assert settings.get("train.untrained") in (None, ["1"], ["2"])
    assert run("receive", file, "-o", output, "--quiet") == 0
    assert output.read_bytes() == text_of(place)
    assert text_of(place)[:701] == (ROOT / "LICENSE").read_bytes()[:701]


@pytest.fixture(scope="module")
def ordinary(place) -> Path:
    """A run of one process with all settings of parts."""
    assert run("train", place / "config.yaml", *EVERYTHING, "name=ordinary") == 0
    return place / "runs" / "ordinary"


def test_zero_reads_and_learns_as_one_process_does(place, ordinary):
    settings = ("name=zero", "backend.name=deepspeed", "backend.zero_stage=2")
    status, _, errors = ended(command("train", place / "config.yaml", *EVERYTHING, *settings))
    assert status == 0, errors
    assert_same_run(place / "runs" / "zero", ordinary)


def test_a_run_reads_and_learns_as_its_code_does(place, ordinary, tmp_path, capsys):
    assert run("send", place / "config.yaml", *EVERYTHING, "-o", tmp_path / "file.clo", "--quiet", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    code = read_online_code(ordinary, 132, 2101)
    assert report["aulc_bits"] == pytest.approx(code.aulc_bits, rel=1e-12)
    assert run("table", ordinary, "--by", "part", "--format", "json") == 0
    *parts, whole = json.loads(capsys.readouterr().out)
    assert [part["part"] for part in parts] == ["a", "b", "c"]
    for key in ("raw_bytes", "online_bytes", "heldout_bytes"):
        assert sum(part[key] for part in parts) == pytest.approx(whole[key], abs=2)
    assert whole["heldout_bytes"] == 300 and whole["raw_bytes"] == 2101
    assert whole["online_bytes"] == pytest.approx(code.ideal_bits / 8, abs=1)
    by_name = {part["part"]: part for part in parts}
    # Held back is read last, and what is not learnt from stays as dear as it was.
    assert by_name["b"]["share_of_last_quarter"] > 0.98 and by_name["b"]["share_of_first_quarter"] == 0
    assert by_name["c"]["online_bits_per_byte"] > 8 > by_name["a"]["online_bits_per_byte"]
    assert run("table", ordinary, "--by", "part", "--format", "md") == 0
    assert "held-out bits/byte" in capsys.readouterr().out


def test_tensorboard_shows_when_each_part_was_read(ordinary):
    assert run("eval", ordinary) == 0
    events = EventAccumulator(str(ordinary / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    shares = {
        name: {event.step: make_ndarray(event.tensor_proto).item() for event in events.Tensors(f"parts/share/{name}")}
        for name in "abc"
    }
    assert max(shares["b"]) == max(shares["a"]) <= 2101 and shares["b"][min(shares["b"])] == 0
    for place in shares["a"]:
        assert sum(own[place] for own in shares.values()) == pytest.approx(1, abs=1e-6)
    (table,) = (make_ndarray(event.tensor_proto).item().decode() for event in events.Tensors("parts/text_summary"))
    assert "held-out bits/byte" in table and all(f"| {name} |" in table for name in "abc")
    losses = [make_ndarray(event.tensor_proto).item() for event in events.Tensors("parts/loss_bits_per_byte/c")]
    assert 8 < np.mean(losses) < 12
    assert (ordinary / "figures" / "parts.png").stat().st_size > 10_000


def test_a_sweep_of_mixtures_ends_in_a_table_of_its_parts(place, capfd):
    (place / "sweep.yaml").write_text(
        "name: shares\nconfig: config.yaml\ngrid:\n  train.shares: [natural]\n  seed: [0, 1]\n"
    )
    sweep = read_sweep(place / "sweep.yaml", [])
    for one in sweep.runs:
        train_run(one.config)
        assert run("eval", one.config.run_dir) == 0
    assert run("sweep", place / "sweep.yaml") == 0
    (row,) = csv.DictReader((sweep.directory / "parts.csv").read_text().splitlines())
    runs = [part_records(one.config.run_dir) for one in sweep.runs]
    for name, records in zip((*"abc", ""), zip(*runs, strict=True), strict=True):
        rates = [record["online_bits_per_byte"] for record in records]
        assert float(row[f"{name}_bits_per_byte".lstrip("_")]) == pytest.approx(sum(rates) / 2)
    assert float(row["bits_per_byte_deviation"]) == pytest.approx(abs(rates[0] - rates[1]) / 2**0.5)
    assert (sweep.directory / f"parts-{sweep.runs[0].name}.png").exists() and "parts.md" in capfd.readouterr().out


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """A run of two ranks that was never stopped."""
    for status, printed, errors in finish(2, place / "config.yaml", "name=whole"):
        assert status == 0, printed + errors
    return place / "runs" / "whole"


def test_a_run_killed_after_its_first_laws_ends_with_the_same_bits(place, whole):
    directory, settings = place / "runs" / "killed", ("name=killed", "train.checkpoint_minutes=1e-9")
    with Ranks(2, place / "config.yaml", *settings) as job:
        saved = lambda: [path for path in committed_checkpoints(directory) if int(path.name[5:]) > 45]  # noqa: E731
        job.wait_until(lambda: bool(saved()))
        time.sleep(0.02)
        job.kill()
    ends = finish(2, place / "config.yaml", *settings)
    assert [status for status, *_ in ends] == [0, 0], ends
    assert "resume      from step" in ends[0][1]
    assert_same_run(directory, whole)


def test_two_ranks_send_go_on_and_receive(place, tmp_path):
    file, again = tmp_path / "file.clo", tmp_path / "again.clo"
    program = ["-m", "launch", "send", str(place / "config.yaml"), *EVERYTHING, "--quiet", "-o"]
    with Ranks(2, place, program=[*program, str(file)]) as job:
        assert all(status == 0 for status, _, _ in job.wait())
    with Ranks(2, place, program=[*program, str(again)]) as job:
        job.wait_until(lambda: len([*tmp_path.glob("again.clo.part/checkpoints/*/COMMITTED")]) > 0)
        job.kill()
    with Ranks(2, place, program=[*program, str(again)]) as job:
        assert all(status == 0 for status, _, _ in job.wait())
    assert again.read_bytes() == file.read_bytes()
    status, _, errors = ended(command("receive", file, "-o", tmp_path / "out", "--quiet"))
    assert status == 0, errors
    assert (tmp_path / "out").read_bytes() == text_of(place)


REFUSED = {
    "train.shares=[1,2]": "train.shares=[1,2]: must be natural, uniform, ado, 3 weights above 0",
    "train.shares=[1,2,0]": "train.shares=[1,2,0]: must be",
    "train.shares=[[5,1,2,1]]": "train.shares=[[5,1,2,1]]: must be",
    "train.shares=often": "train.shares=often: must be",
    "train.shares=[]": "train.shares=[]: must be",
    "train.last=[d]": "train.last=d: no such part; use some of a, b, c",
    "train.untrained=[a,b,c]": "names every part; leave one out",
    "train.retrain_at=[0.5]": "train.shares=ado: a block code learns nothing",
    "train.order=streams": "train.order=streams: reads the text in its own order",
    "train.ado_start=3": "train.ado_start=3: must be at least 40",
    "corpus.parts=[a]": "corpus.parts: names 1; must be 2 to 256",
    "corpus.parts=[a,a]": "each can be named once",
    "corpus.parts=[a,d]": "corpus.parts=d: no such entry of corpus.path=",
    "corpus.parts=[a,../text]": "corpus.parts=../text: must name an entry",
    "corpus.parts=[]": "train.shares=ado: the text has no parts",
    "corpus.heldout_bytes=2": "less than a byte for each of 3 parts",
    f"corpus.parts={[*map(str, range(257))]}": "corpus.parts: names 257; must be 2 to 256",
    "corpus.kind=wiki-mini": "only for corpus.kind=files and domains",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_be_is_refused_before_the_first_step(place, capsys, setting):
    also = ("corpus.path=null",) if "wiki-mini" in setting else ()
    assert run("train", place / "config.yaml", "name=refused", setting, *also) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and REFUSED[setting] in errors, errors
    assert not (place / "runs" / "refused").exists()


def test_a_file_has_no_parts_and_a_run_without_them_no_such_table(place, capsys, tmp_path):
    assert run("send", place / "config.yaml", ROOT / "LICENSE", "-o", tmp_path / "x", "--quiet") == 2
    assert "a file has no parts" in capsys.readouterr().err


def test_fewer_steps_than_laws_need_are_told_and_keep_natural_shares(place, capsys):
    assert run("train", place / "config.yaml", "name=short", "train.ado_start=1000", "dry_run=true") == 0
    assert re.search(r"mixture +ado .*1,000.* natural shares", capsys.readouterr().out)
    assert run("send", place / "config.yaml", "train.ado_start=1000", "-o", place / "short.clo") == 0
    assert re.search(r"mixture +ado .*1,000.* natural shares", capsys.readouterr().err)


def test_misleading_parts_are_refused(place, capsys, tmp_path):
    file = tmp_path / "file.clo"
    assert run("send", place / "config.yaml", "train.shares=uniform", "-o", file, "--quiet") == 0
    capsys.readouterr()
    for starts in ([0], [1, 5, 9], [0, 9, 5], [0, 9, 2101]):

        def mislead(head, sections, starts=starts):
            sections["PART"] = Parts((), np.array(starts)).to_bytes()

        foreign = repacked(file.read_bytes(), tmp_path / "foreign.clo", mislead)
        assert "malformed parts" in refused(capsys, foreign, tmp_path / "out")
    foreign = repacked(file.read_bytes(), tmp_path / "foreign.clo", lambda head, sections: sections.pop("PART"))
    assert "the text has no parts" in refused(capsys, foreign, tmp_path / "out")


def test_parts_begin_where_their_files_do_in_symbols_of_any_kind(place):
    settings = ("tokenizer.kind=sentencepiece", "tokenizer.vocab_size=400", f"data_dir={place}/data")
    config = load_config(place / "config.yaml", settings)
    with pytest.raises(UsageError):
        open_data(config)
    assert run("data", place / "config.yaml", *settings[:2]) == 0
    data = open_data(config)
    sizes = []
    for part in np.split(data.train.tokens, data.train.parts.starts[1:]):
        sizes.append(len(data.tokenizer.decode(part)))
    assert sizes == [701, 700, 700]
    assert open_data(load_config(place / "config.yaml")).heldout.parts.starts.tolist() == [0, 100, 200]


# The order of documents

DOCUMENTS = [bytes([65 + number % 26]) * (1 + 7 * number % 23) + b" the same\n" for number in range(60)]


@pytest.fixture(scope="module")
def ordered(place) -> Path:
    """A configuration of a text of 60 documents."""
    lines = "".join(f"{json.dumps({'text': text.decode()})}\n" for text in DOCUMENTS)
    (place / "documents.jsonl").write_text(lines)
    content = yaml.safe_load((place / "config.yaml").read_text())
    content["corpus"] = {"kind": "files", "path": f"{place}/documents.jsonl", "heldout_bytes": 100}
    content["train"] |= {"shares": "natural", "batch_sequences": 4}
    (place / "ordered.yaml").write_text(yaml.safe_dump(content))
    return place / "ordered.yaml"


@pytest.mark.parametrize("order", ["random:1", "similar"])
def test_a_text_comes_back_in_its_own_order(ordered, tmp_path, capsys, order):
    file, output = tmp_path / "file.clo", tmp_path / "out"
    assert run("send", ordered, f"corpus.documents={order}", "-o", file, "--quiet", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run("receive", file, "-o", output, "--quiet") == 0
    assert output.read_bytes() == b"".join(DOCUMENTS)[:-100]
    head = read_online_file(file)[0]
    assert report["order_bits"] == 8 * len(head.order.to_bytes()) > head.order.order_bits
    bits = sum(value for key, value in report.items() if key.endswith("_bits"))
    assert bits == pytest.approx(8 * file.stat().st_size, abs=1e-6)


def test_misleading_orders_are_refused(ordered, tmp_path, capsys):
    file = tmp_path / "file.clo"
    assert run("send", ordered, "corpus.documents=random:1", "-o", file, "--quiet") == 0
    capsys.readouterr()
    order = read_online_file(file)[0].order
    longer = DocumentOrder(order.order, order.lengths + 1).to_bytes()
    many = (2**32 - 1).to_bytes(4, "little") + order.to_bytes()[4:]
    for content in (longer, many, order.to_bytes()[:20], b"", order.to_bytes() + b"\0"):

        def mislead(head, sections, content=content):
            sections["ORDR"] = content

        foreign = repacked(file.read_bytes(), tmp_path / "foreign.clo", mislead)
        assert "malformed order" in refused(capsys, foreign, tmp_path / "out"), content
    # Without it the text comes in the order in which it was coded, which is not what was sent.
    foreign = repacked(file.read_bytes(), tmp_path / "foreign.clo", lambda head, sections: sections.pop("ORDR"))
    refused(capsys, foreign, tmp_path / "out")


def test_orders_that_are_none_are_refused(ordered, place, capsys):
    (place / "short.txt").write_text("0\n2\n1\n")
    for given, words in {
        "backwards": "unknown; use one of as-is",
        f"{place}/short.txt": "no permutation of the",
    }.items():
        assert run("data", ordered, f"corpus.documents={given}") == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
