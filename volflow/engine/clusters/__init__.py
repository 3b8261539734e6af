"""Clusters by name: this machine's cores and memory, its workers and GPUs, SLURM, other hosts."""
