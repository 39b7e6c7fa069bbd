"""What a run will take, told before anyone pays."""
