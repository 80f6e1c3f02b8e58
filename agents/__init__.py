"""How it is learned: fleets of agents as matrices. Knows torch and numpy, neither Flower nor the worlds."""
