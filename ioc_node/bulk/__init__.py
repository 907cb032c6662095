"""Bytes between nodes: verified blobs over QUIC, with offloads where both ends have one."""
