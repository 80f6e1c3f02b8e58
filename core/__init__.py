"""The foundation of all rooms: errors, options, the registry, randomness, rows of state. Imports nothing of ours."""
