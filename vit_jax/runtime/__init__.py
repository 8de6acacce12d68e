"""Devices, processes, files: what every floor stands on; it knows no model and no config key."""
