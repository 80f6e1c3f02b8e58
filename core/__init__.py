"""What every room stands on: configuration, randomness, rows of state, files. Imports nothing of ours."""
