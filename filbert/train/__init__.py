"""Training: the options, the loop, exact resume, and what a run leaves behind."""
