"""Code lengths of published curves: known figures, closed forms, sure bounds, and one line for what is wrong."""

import csv
import io
import json
import math
import shlex

import numpy as np
import pytest
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from eval.curves.area import fit_law, online_length, power_integral
from eval.curves.read import Curve
from harness.units import bits_from_bytes, bits_from_nats, bytes_from_bits, nats_from_bits
from launch.main import main
from tests.support.commands import ROOT

TOKENS = 1.4e12
LLAMA = "1,10.373491181781864\n1.4e12,1.54\n"
LLAMA_OPTIONS = "--unit nats --tokens 1.4e12 --raw-bytes 5.6e12 --parameters 65.5e9 --bits-per-weight 16 "
LLAMA_OPTIONS += "--vocab-size 32000"
PAGE = (ROOT / "docs" / "results" / "llama-65b.md").read_text()


@pytest.fixture
def curve(tmp_path, monkeypatch, capsys):
    """`curve(text, options)` runs the command on a file of that text and returns its record."""
    monkeypatch.chdir(tmp_path)

    def run(text: str | bytes, options: str, fmt: str = "json") -> dict | str:
        (tmp_path / "curve.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return printed(f"curve curve.csv {options} --format {fmt}", capsys, fmt)

    return run


def printed(command: str, capsys, fmt: str = "json") -> dict | str:
    assert main(shlex.split(command)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out) if fmt == "json" else captured.out


def gigabytes(nats_per_token: float, num_tokens: float = TOKENS) -> float:
    return bytes_from_bits(bits_from_nats(nats_per_token * num_tokens)) / 1e9


def points(tokens, losses) -> str:
    return "".join(f"{float(t)!r},{float(loss)!r}\n" for t, loss in zip(tokens, losses, strict=True))


def test_llama_65b(curve):
    record = curve(LLAMA, LLAMA_OPTIONS)
    assert f"{record['offline_data_bytes'] / 1e9:.1f}" == "388.8"
    assert f"{record['model_bytes'] / 1e9:.1f}" == "131.0"
    assert f"{record['offline_bytes'] / 1e9:.1f}" == "519.8"
    assert f"{record['online_bytes'] / 1e9:.1f}" == "417.3"
    exponent = math.log(math.log(32000) / 1.54) / math.log(TOKENS)
    area_nats = math.log(32000) * (1 + (TOKENS ** (1 - exponent) - 1) / (1 - exponent))
    assert record["online_bytes"] == pytest.approx(gigabytes(1, area_nats) * 1e9, rel=1e-12)
    assert (record["fit_c_nats"], record["fit_rms_nats"]) == (0, pytest.approx(0, abs=1e-12))
    assert (record["fit_a_nats"], record["fit_b"]) == pytest.approx((math.log(32000), exponent), rel=1e-12)
    assert record["online_bits"] == pytest.approx(8 * record["online_bytes"], rel=1e-15)


def test_a_mean_loss_of_1_584_nats_is_400_gb_and_a_ratio_of_14(curve):
    mean_nats = nats_from_bits(bits_from_bytes(400e9)) / TOKENS
    assert f"{mean_nats:.3f}" == "1.584"
    record = curve(f"1,{mean_nats!r}\n1.4e12,{mean_nats!r}", "--unit nats --raw-bytes 5.6e12")
    assert record["online_bytes"] == pytest.approx(400e9, rel=1e-12)
    assert record["online_raw_per_coded"] == pytest.approx(14.0, rel=1e-12)
    assert record["online_bits_per_byte"] == pytest.approx(8 / 14, rel=1e-12)


def test_the_published_187_and_318_gb_are_the_slip_of_a_product():
    multiplied = TOKENS * 1.54 * math.log(2) / 8 / 1e9
    assert (f"{multiplied:.0f}", f"{multiplied + 131:.0f}") == ("187", "318")
    assert multiplied == pytest.approx(gigabytes(1.54) * math.log(2) ** 2, rel=1e-12)


def test_the_page_prints_what_its_command_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = [part.split("\n```")[0] for part in PAGE.split("```console\n")[1:]]
    assert blocks
    for block in blocks:
        command, shown = block.split("\n", 1)
        assert command.startswith("$ codelength curve docs/")
        assert printed(command.removeprefix("$ codelength "), capsys, "md") == shown + "\n"
    command = blocks[0].split("\n")[0].removeprefix("$ codelength ").replace("-weight 16", "-weight 3.4")
    assert "offline is shorter than online by 0.1 %" in printed(command, capsys, "md")
    first, last = (ROOT / "docs" / "results" / "llama-65b.csv").read_text().splitlines()[1:]
    assert [float(first.split(",")[1]), last] == [pytest.approx(math.log(32000), rel=1e-15), "1.4e12,1.54"]


def test_the_figures_of_the_page_follow_from_what_it_says_is_given():
    data, by_law = gigabytes(1.54), 417.26510935
    offline, wrong = data + 131, data * math.log(2) ** 2
    for online in (400.0, by_law):
        shorter, longer = 100 * (1 - (wrong + 131) / online), 100 * (offline / online - 1)
        assert f"| {online:.1f} | {shorter:.1f} % shorter | {longer:.1f} % longer |" in PAGE
        assert f"{online - data:.1f} GB by the" in PAGE
        assert f"{(online - data) * 8 / 65.5:.2f} bits (by the" in PAGE
    assert f"| N l ln 2 / 8 | {wrong:.1f} | {wrong + 131:.1f} |" in PAGE
    assert f"| N l / ln 2 / 8 | {data:.1f} | {offline:.1f} |" in PAGE
    assert f"{318 / 0.58:.0f} GB" in PAGE and f"{by_law + 131:.0f}" == "548" == f"{318 / 0.58:.0f}"
    assert f"{100 * (1 - offline / 548):.0f} % shorter, not 42 %" in PAGE
    assert f"= {math.log(2) ** 2:.3f} times" in PAGE


@pytest.mark.parametrize("unit", ["nats", "bits"])
def test_a_constant_curve_costs_its_loss_for_every_token(curve, unit):
    record = curve(points([7, 1e6, 3e6], [2.5] * 3), f"--unit {unit} --tokens 5e6")
    expected = 2.5 * 5e6 if unit == "bits" else bits_from_nats(2.5 * 5e6)
    assert record["online_bits"] == pytest.approx(expected, rel=1e-14)
    assert (record["fit_a_nats"], record["fit_b"], record["fit_rms_nats"]) == (0, 0, 0)


@pytest.mark.parametrize("exponent", [0.0, 0.05, 0.5, 1 - 1e-9, 1.0, 1.7])
def test_the_area_between_points_of_a_power_law_is_exact(exponent):
    tokens = np.geomspace(300, 4e9, 17)
    losses = 90 * tokens**-exponent
    area = power_integral(tokens[:-1], tokens[1:], losses[:-1], losses[1:]).sum()
    power = 1 - exponent
    exact = 90 * math.log(4e9 / 300) if abs(power) < 1e-8 else 90 * (4e9**power - 300**power) / power
    assert area == pytest.approx(exact, rel=1e-9 if power == 0 or abs(power) > 1e-8 else 1e-6)


def test_head_points_and_tail_of_a_law_add_up_to_its_integral():
    c, a, b = 1.5, 40.0, 0.2
    tokens = np.geomspace(1e6, 1e9, 4000)
    online = online_length(Curve(name="", tokens=tokens, loss_nats=c + a * tokens**-b), 1e12, None)
    exact = c * (1e12 - 1) + a * (1e12 ** (1 - b) - 1) / (1 - b) + c + a
    assert online.total.estimate_nats == pytest.approx(exact, rel=1e-7)
    assert (online.law.c_nats, online.law.a_nats, online.law.exponent) == pytest.approx((c, a, b), rel=1e-6)
    assert online.law.integral_nats(1.0, 1e12) == pytest.approx(exact - c - a, rel=1e-7)


def test_the_head_is_clipped_to_what_a_vocabulary_can_cost():
    tokens = np.geomspace(1e6, 1e9, 50)
    losses = 1.0 + 3000 * tokens**-0.5
    curve = Curve(name="", tokens=tokens, loss_nats=losses)
    free, clipped = (online_length(curve, None, vocab).head for vocab in (None, 256))
    assert free.upper_nats is None
    assert clipped.upper_nats == pytest.approx(1e6 * math.log(256))
    # Uniform until the law falls below it, the law from there to the first point.
    turn = (3000 / (math.log(256) - 1)) ** 2
    exact = math.log(256) * turn + (1e6 - turn) + 6000 * (1e3 - math.sqrt(turn))
    assert clipped.estimate_nats == pytest.approx(exact, rel=1e-5)
    assert clipped.lower_nats < clipped.estimate_nats < free.estimate_nats


@pytest.mark.parametrize("seed", range(20))
def test_bounds_bracket_the_estimate_and_a_curve_that_never_rises(seed):
    rng = np.random.default_rng(seed)
    fine = np.unique(np.geomspace(1, 1e8, 4000).round())
    losses = 1 + np.sort(rng.gamma(1.0, 1.5, len(fine)))[::-1]
    truth_nats = losses[0] + float((np.diff(fine) * losses[1:]).sum())
    kept = np.sort(rng.choice(np.arange(200, len(fine)), 12, replace=False))
    vocab_size = math.exp(losses[0]) * 1.01
    online = online_length(Curve(name="", tokens=fine[kept], loss_nats=losses[kept]), 1e8, vocab_size)
    assert online.total.lower_nats < truth_nats < online.total.upper_nats
    for part in (online.head, online.plotted, online.tail):
        assert part.lower_nats <= part.estimate_nats * (1 + 1e-12) <= part.upper_nats * (1 + 2e-12)


@pytest.mark.parametrize("losses", [[3, 1, 2], [1, 2, 3], [3, 3, 1], [9, 1, 1, 1], [5, 1e-9, 5, 4], [2, 2 + 1e-12, 2]])
def test_odd_curves_have_a_law_that_never_rises_and_ordered_bounds(losses):
    tokens = np.geomspace(2, 1e9, len(losses))
    online = online_length(Curve(name="", tokens=tokens, loss_nats=np.array(losses, dtype=float)), 1e10, 50)
    assert online.law.c_nats >= 0 and online.law.scale_nats >= 0 and 0 <= online.law.exponent <= 1
    total = online.total
    assert total.lower_nats <= total.estimate_nats <= total.upper_nats
    assert math.isfinite(total.estimate_nats)


@pytest.mark.parametrize("num_points", [1000, 50_000])
def test_a_noisy_curve_gives_back_the_law_behind_it(num_points):
    rng = np.random.default_rng(1)
    tokens = np.geomspace(4e6, 1.4e12, num_points)
    law = fit_law(tokens, 1.5 + 40 * tokens**-0.2 + rng.normal(0, 0.05, num_points))
    assert law.c_nats == pytest.approx(1.5, abs=0.05)
    assert law.exponent == pytest.approx(0.2, abs=0.03)


def test_only_first_exposures_count(curve):
    tokens = np.geomspace(1e3, 4e6, 40)
    losses = 2 + 9 * tokens**-0.3
    first = tokens <= 1e6
    changed = np.where(first, losses, 0.01)
    options = "--unit nats --tokens 1e6 --vocab-size 256 --parameters 10 --bits-per-weight 8"
    expected, found = curve(points(tokens[first], losses[first]), options), curve(points(tokens, changed), options)
    assert found["points_beyond"] == (~first).sum() and expected["points_beyond"] == 0
    assert {k: v for k, v in found.items() if k != "points_beyond"} == {
        k: v for k, v in expected.items() if k != "points_beyond"
    }
    text = curve(points(tokens, changed), options, "md")
    assert f"First exposures only: {(~first).sum()} point(s) beyond 1,000,000 tokens left out" in text


def test_the_offline_code_takes_the_last_counted_or_the_given_loss(curve):
    options = "--unit bits --tokens 1000 --parameters 100 --bits-per-weight 4"
    text = "10,6\n1000,3\n2000,1\n"
    assert curve(text, options)["offline_bits"] == pytest.approx(3 * 1000 + 400, rel=1e-14)
    given = curve(text, f"{options} --final-loss 3.25")
    assert given["offline_bits"] == pytest.approx(3.25 * 1000 + 400, rel=1e-14)
    assert given["final_loss_is_given"] is True


def test_the_verdict_says_what_the_bounds_leave_open(curve):
    text = points([1, 1e6, 2e6], [5, 5, 5])
    sure = "--unit bits --vocab-size 33 --bits-per-weight 8 --parameters"
    assert "online is shorter than offline by 50.0 %; so it is at both bounds" in curve(text, f"{sure} 1250000", "md")
    equal = curve("1,5\n2,5\n4,5\n", f"{sure} 1000 --final-loss 1 --tokens 2000", "md")
    assert "Online and offline are equally long" in equal
    text = points([1, 1e6], [10, 5])
    shown = curve(text, "--unit bits --bits-per-weight 1 --parameters 1", "md")
    assert "offline is shorter than online by" in shown and "bounds of online leave this open" in shown


@pytest.mark.parametrize("fmt", ["rich", "md", "latex", "csv", "json"])
def test_every_format_says_that_no_file_stands_behind_it(curve, fmt):
    text = curve(LLAMA, LLAMA_OPTIONS, fmt)
    shown = json.dumps(text) if fmt == "json" else " ".join(text.split())
    assert "ideal, from a plotted curve; no file stands behind it" in shown
    assert ("417,265,109,356" in shown) == (fmt in ("rich", "md", "latex"))
    if fmt == "csv":
        (row,) = csv.DictReader(io.StringIO(text))
        assert float(row["online_bytes"]) == curve(LLAMA, LLAMA_OPTIONS)["online_bytes"]


def test_without_a_vocabulary_no_upper_bound_is_claimed(curve):
    options = "--unit nats --tokens 1e12"
    record = curve("1e9,3\n1e12,2\n", options)
    assert record["online_upper_bits"] is None and record["head_upper_bits"] is None
    text = curve("1e9,3\n1e12,2\n", options, "md")
    assert "No upper bound" in text and "online, at most" not in text


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("tokens,loss\n1000,3\n2000,2\n", ""),
        ("\ufefftokens,loss\r\n1000,3\r\n\r\n2000,2\r\n", ""),
        ("1000;3\n2000;2\n", ""),
        ("1000\t3\n2000\t2", ""),
        ("step,run,loss,lr\n1,a,3,0.1\n2,a,2,0.1\n", "--columns step,loss --tokens-per-step 1e3"),
        ("loss,billions\n3,0.000001\n2,0.000002\n", "--columns billions,loss --tokens-per-step 1e9"),
    ],
)
def test_csv_files_as_users_have_them(curve, text, options):
    record = curve(text, f"--unit nats --vocab-size 99 {options}")
    assert record["online_bits"] == pytest.approx(curve("1000,3\n2000,2", "--unit nats --vocab-size 99")["online_bits"])


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Logs of two scalars by torch, in both ways that TensorBoard stores them, and one that starts at step 0."""
    folder = tmp_path_factory.mktemp("logs")
    for name, first_step, new_style in (("old", 1, False), ("new", 1, True), ("zero", 0, False)):
        with SummaryWriter(str(folder / name)) as writer:
            for step in range(first_step, 3000):
                writer.add_scalar("train/loss", 2 + 5 / (step + 1), step, new_style=new_style)
            if name != "zero":
                writer.add_scalar("lr", 0.1, 1)
    return folder


@pytest.mark.parametrize("name", ["old", "new"])
def test_a_tensorboard_log_is_read_whole(logs, capsys, name):
    command = f"curve {logs / name} --tag train/loss --unit nats --tokens-per-step 512 --tokens 1e6"
    command += " --vocab-size 1000 --format json"
    record = printed(command, capsys)
    assert record["points"] == 1953 and record["points_beyond"] == 2999 - 1953
    assert record["first_loss_nats"] == pytest.approx(4.5, rel=1e-6)
    loss_sum_nats = sum(512 * (2 + 5 / (step + 1)) for step in range(1, 1954))
    # A log of every step has the sum of its losses as the lower bound: each is the right end of its batch.
    assert nats_from_bits(record["online_lower_bits"]) == pytest.approx(loss_sum_nats, rel=1e-6)
    assert nats_from_bits(record["online_bits"]) == pytest.approx(loss_sum_nats, rel=3e-3)
    (file,) = (logs / name).iterdir()
    assert printed(command.replace(str(logs / name), str(file)), capsys)["online_bits"] == record["online_bits"]


def test_a_log_that_starts_at_step_0_counts_from_it(logs, capsys):
    command = f"curve {logs / 'zero'} --unit nats --tokens-per-step 512 --format"
    record = printed(f"{command} json", capsys)
    assert (record["tokens"], record["first_loss_nats"]) == (3000 * 512, 7)
    assert "starts at step 0" in printed(f"{command} md", capsys, "md")


def test_the_figure_is_a_png_that_replaces_what_was_there(curve, tmp_path):
    figure = tmp_path / "out.png"
    for text, options in ((LLAMA, LLAMA_OPTIONS), ("2,3\n4,3\n8,3\n", "--unit nats --tokens 5")):
        figure.write_text("old")
        curve(text, f"{options} --figure out.png")
        assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.csv", "out.png"]


@pytest.mark.parametrize(("tokens", "is_shaded"), [("8", False), ("1000", True)])
def test_the_figure_shades_what_no_point_shows(curve, tmp_path, tokens, is_shaded):
    curve("2,3\n4,3\n8,3\n", f"--unit nats --tokens {tokens} --figure out.png")
    image = imread(tmp_path / "out.png")[:, :, :3]
    for colour, alpha, is_there in (((0x00, 0x72, 0xB2), 0.13, True), ((0x00, 0x9E, 0x73), 0.16, is_shaded)):
        shade = 1 - alpha + alpha * np.array(colour) / 255
        assert ((np.abs(image - shade).max(axis=2) < 0.01).sum() > 20_000) == is_there


GOOD = "1000,3\n2000,2\n"
NATS = "--unit nats"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (GOOD, "", ["--unit is missing", "nats or bits"]),
        (GOOD, "--unit bytes", ["--unit bytes", "nats or bits"]),
        (None, NATS, ["curve.csv: No such file"]),
        ("", NATS, ["curve.csv: the file is empty"]),
        (b"\x89PNG\r\n\x1a\n\x00", NATS, ["not a text file"]),
        (b"1,2\x00\n", NATS, ["not a text file"]),
        (b"1,2\n" * (17 << 20), NATS, ["larger than 64 MB"]),
        ("just words\n", NATS, ["1 column(s)"]),
        ("a,b,c\n1,2,3\n", NATS, ["3 column(s)", "--columns X,LOSS", "a, b, c"]),
        ("a,b,c\n1,2,3\n", f"{NATS} --columns a,d", ["'d' is not in", "a, b, c"]),
        ("a,b,a\n1,2,3\n", f"{NATS} --columns a,b", ["'a' stands more than once"]),
        (GOOD, f"{NATS} --columns a", ["--columns a", "two names"]),
        (GOOD, f"{NATS} --tag loss", ["--tag loss", "--columns"]),
        ("1000,3\n", NATS, ["1 point(s)", "at least two"]),
        ("tokens,loss\n", NATS, ["0 point(s)"]),
        ("1000,3\n2000,low\n", NATS, ["line 2", "loss 'low' is not a number"]),
        ("1000,3\n2000,\n", NATS, ["line 2", "loss '' is not a number"]),
        ("1000;3\n2000;2,5\n", NATS, ["line 2", "'2,5' is not a number", "write 2.5"]),
        ("1000,3\n2000\n", NATS, ["line 2", "1 column(s) instead of 2"]),
        ("1000,3\n2000,nan\n", NATS, ["line 2", "loss nan"]),
        ("1000,3\ninf,2\n", NATS, ["line 2", "x inf"]),
        ("1000,3\n2000,1e99\n", NATS, ["line 2", "1e+99"]),
        ("x,l\n2000,3\n1000,2\n", NATS, ["line 3", "x 1000 comes after 2000"]),
        ("1000,3\n1000,2\n", NATS, ["line 2", "comes after 1000"]),
        ("0,3\n1000,2\n", NATS, ["line 1", "x 0 must be above 0"]),
        ("-5,3\n1000,2\n", NATS, ["line 1", "x -5 must be above 0"]),
        ("1000,3\n2000,-2\n", NATS, ["line 2", "loss -2 must be above 0"]),
        ("1000,3\n2000,0\n", NATS, ["line 2", "loss 0 must be above 0"]),
        ("0.5,3\n1.5,2\n", NATS, ["line 1", "less than one token", "--tokens-per-step"]),
        (GOOD, f"{NATS} --tokens 0", ["--tokens 0", "at least 1"]),
        (GOOD, f"{NATS} --tokens=-1e9", ["--tokens -1e9", "at least 1"]),
        (GOOD, f"{NATS} --tokens many", ["--tokens many", "1.4e12"]),
        (GOOD, f"{NATS} --tokens nan", ["--tokens nan"]),
        (GOOD, f"{NATS} --tokens inf", ["--tokens inf"]),
        (GOOD, f"{NATS} --tokens 1500", ["--tokens 1500", "1 of 2 points"]),
        (GOOD, f"{NATS} --tokens-per-step 0", ["--tokens-per-step 0", "above 0"]),
        (GOOD, f"{NATS} --vocab-size 1", ["--vocab-size 1", "at least 2"]),
        (GOOD, f"{NATS} --raw-bytes 0", ["--raw-bytes 0", "at least 1"]),
        (GOOD, f"{NATS} --parameters 5", ["--bits-per-weight 16"]),
        (GOOD, f"{NATS} --bits-per-weight 5", ["--parameters N"]),
        (GOOD, f"{NATS} --final-loss 2", ["--final-loss", "--parameters N"]),
        (GOOD, f"{NATS} --format html", ["--format html", "rich, md, csv, json, latex"]),
        (GOOD, f"{NATS} --figure out.pdf", ["out.pdf", ".png"]),
        (GOOD, f"{NATS} --figure no/out.png", ["no/out.png", "existing directory"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, capsys, text, options, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "curve.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(["curve", "curve.csv", "--figure", "out.png", *shlex.split(options)], words, capsys)
    assert not list(tmp_path.glob("*.png*"))


def refused(arguments: list[str], words: list[str], capsys) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    for word in words:
        assert word in line


def test_logs_that_cannot_be_read_are_refused_in_one_line(logs, tmp_path, capsys):
    good, steps = str(logs / "old"), ["--tokens-per-step", "512"]
    (tmp_path / "empty").mkdir()
    junk = tmp_path / "events.out.tfevents.1.junk"
    junk.write_bytes(bytes(range(256)) * 40)
    for arguments, words in (
        ([good, *steps], ["2 scalars", "--tag", "train/loss, lr"]),
        ([good, *steps, "--tag", "acc"], ["--tag acc", "train/loss, lr"]),
        ([good, *steps, "--tag", "lr"], ["1 point(s)"]),
        ([good, "--tag", "train/loss"], ["--tokens-per-step N"]),
        ([good, *steps, "--columns", "a,b"], ["--columns a,b", "--tag"]),
        ([str(tmp_path / "empty"), *steps], ["no scalar"]),
        ([str(junk), *steps], [junk.name]),
        ([f"{junk}2", *steps], ["No such file"]),
    ):
        refused(["curve", *arguments, "--unit", "nats"], words, capsys)
