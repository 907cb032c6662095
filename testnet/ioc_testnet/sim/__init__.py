"""The deterministic simulator: the real DHT machines in virtual time, from one seed."""
