"""A network of real node processes on this machine."""
