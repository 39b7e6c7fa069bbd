"""`python -m launch`: the same as `codelength`, also as one of several ranks under torchrun."""

import os
import sys

from launch.main import main

status = main()
if "RANK" in os.environ:
    from harness.machine.ranks import leave

    leave(status)
sys.exit(status)
