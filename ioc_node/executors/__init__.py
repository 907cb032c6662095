"""Runs tasks in sandboxes, behind one interface."""
