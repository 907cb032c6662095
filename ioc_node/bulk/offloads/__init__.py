"""Ways to move a blob that bypass QUIC where both ends can."""
