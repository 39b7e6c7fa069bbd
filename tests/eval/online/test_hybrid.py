"""Online codes that start from the weights of an archive: the file holds and charges them, both ends learn on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eval.codec.container import read_sections
from eval.offline.archive import QuantisedModel
from eval.online.file import read_online_file
from eval.report.record import flat_record, lengths
from eval.weights.codec import quantise
from harness.config.run import RunConfig, load_config
from harness.corpus.prepared import open_data
from harness.data.batches import make_batches
from harness.data.order import Sequences
from harness.data.tokenizer import ByteTokenizer
from harness.machine.ranks import Ranks
from harness.model.transformer import Transformer, token_nats
from harness.run.directory import read_start_bytes
from harness.run.ledger import OnlineCode, read_online_code
from harness.train import main as rank_main
from harness.units import bits_from_nats
from tests.support.archives import make_model, repacked, settings, write
from tests.support.online import TEXT, command, ended, refused, run

SETTINGS = ("rule.kind=none", "train.precision=fp32")


@pytest.fixture(scope="module")
def model(place) -> QuantisedModel:
    """A model that has seen the corpus, rounded."""
    assert run("train", place / "config.yaml", *SETTINGS, "name=first", "prune.kind=none", "train.epochs=4") == 0
    trained = load_file(place / "runs" / "first" / "weights.safetensors")
    config = load_config(place / "config.yaml").model
    weights = {name: trained[name] for name, _ in Transformer(config, 256).named_parameters()}
    steps = {name: np.float32(0.02) for name in weights}
    return QuantisedModel(config, ByteTokenizer(), quantise(weights, steps), steps)


@pytest.fixture(scope="module")
def archive(place, model) -> Path:
    write(place / "first.cl", TEXT[:100], model, settings(chunk_bytes=64))
    return place / "first.cl"


@pytest.fixture(scope="module")
def still(place, archive) -> RunConfig:
    """A run that starts from the archive and does not move."""
    name = ("name=still", f"online.start={archive}", "online.start_rate_factor=0")
    assert run("train", place / "config.yaml", *SETTINGS, *name) == 0
    return load_config(place / "config.yaml", [*SETTINGS, *name])


def code_of(config: RunConfig) -> OnlineCode:
    train = open_data(config).train
    sequences = Sequences(train, config.model.context).num_sequences
    return read_online_code(config.run_dir, sequences, train.num_tokens)


MIXED = ("online.models=[16x1x1]", "online.experts=[frequencies]", "train.replays=1")


@pytest.mark.parametrize("more", [(), MIXED], ids=["alone", "mixed"])
def test_it_comes_back_and_holds_the_weights_of_the_archive(capsys, place, archive, tmp_path, more):
    file, output, start = tmp_path / "file.clo", tmp_path / "out", f"online.start={archive}"
    arguments = ("send", place / "config.yaml", place / "text", *SETTINGS, *more)
    assert run(*arguments, start, "-o", file, "--quiet", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    # The archive is not needed any more.
    moved = archive.rename(archive.with_suffix(".away"))
    assert run("receive", file, "-o", output, "--quiet") == 0
    moved.rename(archive)
    assert output.read_bytes() == TEXT
    weights = read_sections(archive)["MODL"]
    assert read_sections(file)["STRT"] == weights and report["start_bits"] == 8 * len(weights)
    assert sum(bits for key, bits in report.items() if key.endswith("_bits")) == pytest.approx(8 * file.stat().st_size)
    head, config, *_ = read_online_file(file)
    assert "online.start" not in head.settings and config.online.start == ""
    assert run(*arguments, "-o", tmp_path / "plain.clo", "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["aulc_bits"] > report["aulc_bits"]


def test_without_a_learning_rate_it_is_the_model_of_the_archive(archive, model, still):
    config, code = still, code_of(still)
    train, ranks = open_data(config).train, Ranks(0, 1, torch.device("cpu"))
    batches = make_batches(train, config.train, config.model.context, 4, config.seed, ranks)
    bits, transformer = 0.0, model.transformer()
    for step in range(batches.order.steps_per_epoch):
        for part in batches.of_step(step).micro_batches:
            with torch.no_grad():
                nats = token_nats(transformer, torch.from_numpy(part.tokens), torch.float32)
            bits += bits_from_nats(float(nats[torch.from_numpy(part.mask)].sum(dtype=torch.float64)))
    assert code.aulc_bits == pytest.approx(bits, abs=1e-6)
    charged = len(read_sections(archive)["MODL"])
    assert read_start_bytes(config.run_dir) == charged
    online = {"ideal_bits": code.ideal_bits, "start_bytes": charged}
    assert lengths(flat_record({"online": online}))["online"].total_bits == pytest.approx(8 * charged + bits)


def test_two_ranks_start_from_it_too_and_a_bare_rank_says_who_reads_archives(capsys, place, archive, still):
    settings = (place / "config.yaml", *SETTINGS, f"online.start={archive}", "online.start_rate_factor=0")
    assert ended(command("train", *settings, "name=two", "--processes", "2"))[0] == 0
    two = load_config(place / "config.yaml", ["name=two"])
    assert code_of(two).aulc_bits == pytest.approx(code_of(still).aulc_bits, rel=1e-6)
    capsys.readouterr()
    assert rank_main([str(each) for each in settings]) == 2
    assert "use it in place of `python -m harness.train`" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_in_a_line(capsys, place, archive, sent, model, tmp_path):
    wide, sentencepiece = tmp_path / "wide.cl", tmp_path / "pieces.cl"
    write(wide, TEXT[:30], make_model())
    refusals = {
        f"online.start={wide}": "model.width=32 here and 16 there",
        f"online.start={sent}": "holds no weights",
        f"online.start={place / 'text'}": "not a codelength archive",
        f"online.start={tmp_path / 'none.cl'}": "No such file",
    }
    repacked(archive.read_bytes(), sentencepiece, lambda head, sections: head.update(tokenizer="sentencepiece"))
    refusals[f"online.start={sentencepiece}"] = "tokenizer"
    for setting, words in refusals.items():
        for verb in (("send", "-o", tmp_path / "out"), ("train", "name=none")):
            assert run(verb[0], place / "config.yaml", *SETTINGS, setting, *verb[1:]) == 2
            told = capsys.readouterr().err
            assert words in told and told.startswith("codelength: online.start") and told.count("\n") == 1, told
    assert not (tmp_path / "out").exists() and not (place / "runs" / "none").exists()


def test_a_longer_context_takes_weights_of_a_shorter_one_and_other_symbols_none(
    capsys, place, archive, model, tmp_path
):
    short = tmp_path / "short.cl"
    write(short, TEXT[:30], replace(model, config=replace(model.config, context=16)), settings(chunk_bytes=16))
    arguments = ("send", place / "config.yaml", place / "text", *SETTINGS, "-o", tmp_path / "out", "--quiet")
    assert run(*arguments, f"online.start={short}") == 0
    pieces = ("tokenizer.kind=sentencepiece", "tokenizer.vocab_size=330")
    assert run(*arguments, "--force", f"online.start={archive}", *pieces) == 2
    assert "symbols of a tokenizer of kind bytes, and the text has sentencepiece" in capsys.readouterr().err


def test_damaged_weights_of_a_signed_file_are_refused(capsys, place, archive, tmp_path):
    file, output = tmp_path / "file.clo", tmp_path / "out"
    assert run("send", place / "config.yaml", place / "text", f"online.start={archive}", "-o", file, "--quiet") == 0
    content = file.read_bytes()
    capsys.readouterr()
    cut = repacked(content, tmp_path / "cut.clo", lambda _, sections: sections.update(STRT=sections["STRT"][:-9]))
    assert "weights section" in refused(capsys, cut, output)
    other = make_model()
    section = read_sections(Path(write(tmp_path / "a.cl", TEXT[:30], other) and tmp_path / "a.cl"))["MODL"]
    wrong = repacked(content, tmp_path / "wrong.clo", lambda _, sections: sections.update(STRT=section))
    assert "weights section" in refused(capsys, wrong, output)
    gone = repacked(content, tmp_path / "gone.clo", lambda _, sections: sections.pop("STRT") and None)
    assert "computes a training step otherwise" in refused(capsys, gone, output)

    def name_a_path(head, sections):
        head["settings"]["online.start"] = "/etc/passwd"

    assert "malformed header" in refused(capsys, repacked(content, tmp_path / "path.clo", name_a_path), output)
