"""Blobs, tickets, QUIC and offloads."""
