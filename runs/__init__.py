"""What a run leaves behind: its directory, its checkpoints, its pictures. Knows files, not learning."""
