"""`python -m tests.fuzz --seconds N --seed S`: change files in ways their formats know, read them, and count."""

import argparse
import sys

from tests.fuzz.fuzzer import fuzz

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--seconds", type=float, default=20.0, help="(default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
options = parser.parse_args()
counts = fuzz(options.seconds, options.seed)
print(counts)
sys.exit(1 if counts.problems else 0)
