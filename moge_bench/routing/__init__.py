"""The router module, its sigma schedule, and the balance losses of the baselines."""
