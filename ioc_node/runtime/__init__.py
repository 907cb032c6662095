"""Machines meet trio, sockets and SQLite."""
