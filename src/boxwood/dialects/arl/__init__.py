"""What ARL's two protocols share: `durations` (Go's), `quantities` (CPU, memory), `steps` (commands, files).

`boxwood.dialects.arl_kubernetes` and `boxwood.dialects.arl_gateway` are built on it; it knows of neither.
"""
