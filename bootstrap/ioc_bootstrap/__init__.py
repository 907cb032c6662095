"""Find the first peers of a network and verify its network file."""
