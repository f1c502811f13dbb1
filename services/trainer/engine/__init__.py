"""The engine: the only torch code of the trainer. It runs one training run and nothing else."""
