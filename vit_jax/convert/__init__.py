"""Weights from anywhere to anywhere: the command, the StableHLO export, checks against peers."""
