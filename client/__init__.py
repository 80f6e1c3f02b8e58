"""The side of the agents: a session with its fleet and worlds, the ClientApp, the long-lived node."""
