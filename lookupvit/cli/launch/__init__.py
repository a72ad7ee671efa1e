"""Where the trainings of `sweep` and `ablate` run: in this process, in several, or on a cluster."""
