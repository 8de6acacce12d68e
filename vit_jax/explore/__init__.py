"""Explorations: the readout lab, sweeps of runs, and their reports."""
