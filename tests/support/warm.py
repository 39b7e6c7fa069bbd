"""What the process that tests fork from does first: what every process of a library does once, and in seconds."""

import numba
import numpy as np

# The first function that numba compiles makes it read its own tables of types.
numba.njit(lambda values: values.sum())(np.ones(1))
