"""What checkpoints and files of weights hold, and what belongs to what."""
