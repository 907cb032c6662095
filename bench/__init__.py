"""Figures: each file measures ours and the named peer in one run (`python -m bench.NAME --json`)."""
