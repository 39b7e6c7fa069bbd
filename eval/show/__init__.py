"""Tables and pictures in general; knows no run."""
