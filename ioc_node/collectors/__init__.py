"""Finds the resources that a provider offers."""
