"""Byzantine behaviour on purpose: forged rows, false worlds, and the plan of who attacks when. Knows no session."""
