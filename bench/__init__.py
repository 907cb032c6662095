"""Figures: each file measures ours and the named peer in one run on one machine (`python -m bench.NAME --json`)."""
