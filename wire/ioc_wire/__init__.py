"""Bytes to meaning and back: every struct that ioc nodes exchange, sign or store.

No clock, no sockets, no randomness: time is an argument, keys are given. The language-neutral description of
everything here is `wire/SPEC.md`; the golden vectors are in `wire/vectors/`.
"""
