"""From a spec to a network: Flax modules, and the pure functions that training uses."""
