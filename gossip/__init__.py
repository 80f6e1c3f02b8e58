"""Gossip: learning without a server. Peers exchange with their neighbours, and no process is the centre."""
