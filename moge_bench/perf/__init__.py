"""Performance: timing, memory, benchmarks and the gate that guards them."""
