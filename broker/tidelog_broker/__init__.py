"""Tidelog."""
