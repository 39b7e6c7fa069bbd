"""How far work has come: a log gets whole lines from time to time, with rate and time left."""

import math

import pytest

from harness.machine import progress


def test_progress_soon_says_rate_and_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    show = progress.show_bytes(quiet=False)
    # What was there when it began does not count for the rate.
    for seconds, done in ((0, 500_000), (1, 501_000), (3, 503_000), (4, 504_000), (13, 513_000)):
        now[0] = 100.0 + seconds
        show(done, 1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "503,000/1,000,000 bytes  1.0 kB/s  8:17 left",
        "513,000/1,000,000 bytes  1.0 kB/s  8:07 left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (161, "2:41"), (3761, "1:02:41"), (math.inf, "?"), (math.nan, "?"), (-1, "?")]
)
def test_a_clock_shows_hours_only_where_there_are_some(seconds, words):
    assert progress.clock(seconds) == words


def test_a_rate_counts_from_what_was_there_when_it_began(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    rate = progress.Rate(40)
    assert rate.per_second(40) == 0 and rate.seconds_left(40, 100) == math.inf
    now[0] = 14.0
    assert rate.per_second(60) == 5 and rate.seconds_left(60, 100) == 8
