"""What the package survives, with figures: random ops under sanitizers, fuzzing, kills, memory.

``make reliability`` (``__main__``); the page is results/reliability.md. Never installed.
"""
