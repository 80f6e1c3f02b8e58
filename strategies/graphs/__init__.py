"""Who is linked to whom: gossip topologies and communication matrices."""
