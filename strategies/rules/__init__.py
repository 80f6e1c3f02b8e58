"""Many rows become one: rules that survive Byzantine agents, and the geometry under them."""
