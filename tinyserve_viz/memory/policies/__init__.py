"""Policies, one small file each."""
