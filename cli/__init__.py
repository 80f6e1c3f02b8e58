"""``fedrl``, the command line."""
