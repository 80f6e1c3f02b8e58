"""How many become one. Knows numpy and Flower; no torch, no worlds."""
