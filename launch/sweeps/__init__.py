"""Many runs: the file that names them, their states, their comparison."""
