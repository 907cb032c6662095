"""Who serves what, and the promise to do so."""
