"""One party: its fleet, its worlds, alone or in a federation."""
