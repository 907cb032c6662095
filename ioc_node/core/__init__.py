"""Sans-IO machines: pure protocol state. Time and chance are arguments; no clock, socket, database or dice here."""
