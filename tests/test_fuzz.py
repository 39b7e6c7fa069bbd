"""Changed files are refused in a line or give the right text; `python -m tests.fuzz` does the same for hours."""

from tests.fuzz.fuzzer import fuzz


def test_no_changed_file_gives_another_text_or_a_traceback():
    counts = fuzz(seconds=20, seed=1)
    assert not counts.problems, str(counts)
    assert counts.refused > 50 and counts.right > 0
