"""Learning without a server: peers exchange with their neighbours, and nobody is the centre."""
