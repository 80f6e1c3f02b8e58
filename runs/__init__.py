"""Runs: configuration, directory, checkpoints, ledger, figures, sweeps and pictures."""
