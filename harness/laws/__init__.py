"""Laws by which losses fall with what was read; knows no run."""
