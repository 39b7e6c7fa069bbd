"""`python -m launch`: the same as `codelength`."""

import sys

from launch.main import main

sys.exit(main())
