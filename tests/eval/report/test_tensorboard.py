"""What TensorBoard shows of an evaluated run: totals, table, figures and settings, however often it is evaluated."""

import shutil
import sys

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from eval.report.record import load_reports
from eval.report.tensorboard import TOTALS, show_run
from tests.support.processes import python, result_of

# A full disk: files may have no more than a thousand bytes.
FULL = """
import resource, sys
from pathlib import Path
from eval.report.tensorboard import show_run
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    show_run(Path(sys.argv[1]))
except OSError as error:
    print(error.filename)
"""


@pytest.fixture(scope="module")
def events(demo_run, tmp_path_factory) -> EventAccumulator:
    run = shutil.copytree(demo_run, tmp_path_factory.mktemp("shown") / "demo")
    for _ in range(2):
        path = show_run(run)
    assert list(run.glob("tensorboard/*.evaluation")) == [path]
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()


def test_totals_are_those_of_the_report_with_units_in_words(events, demo_run):
    offline = load_reports([demo_run])[0]["offline"]
    (event,) = events.Tensors("offline/total_bytes")
    assert make_ndarray(event.tensor_proto).item() == offline["total_bytes"]
    for tag, words in TOTALS.items():
        assert events.SummaryMetadata(tag).summary_description == words
    assert "bits a byte" in events.SummaryMetadata("loss/bits_per_byte").summary_description


def test_the_table_and_the_figures_are_there_once(events, demo_run):
    (event,) = events.Tensors("table/text_summary")
    text = make_ndarray(event.tensor_proto).item().decode()
    assert text == (demo_run / "table.md").read_text()
    names = {path.stem for path in (demo_run / "figures").glob("*.png")}
    assert {tag for tag in events.Tags()["tensors"] if tag.startswith("figures/")} == {
        f"figures/{name}" for name in names
    }
    assert {"online", "loss", "sparsity"} <= names


def test_runs_are_compared_by_their_settings_and_totals(events):
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["rule.kind"].string_value == "rl1" and settings["model.width"].number_value == 32
    assert not {"name", "runs_dir", "data_dir"} & {*settings}
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == {*TOTALS}


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
def test_a_disk_that_is_full_is_said_once_with_the_name_of_the_folder(demo_run, tmp_path):
    run = shutil.copytree(demo_run, tmp_path / "demo")
    done = result_of(python("-c", FULL, run, cwd=tmp_path))
    assert (done.stdout, done.stderr) == (f"{run}/tensorboard\n", "")
