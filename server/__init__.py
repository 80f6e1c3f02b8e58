"""The server of a federation: its rounds, its ServerApp, and the engines that run it."""
