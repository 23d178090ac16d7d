"""Measurements: speed, memory and load time as ratios beside a peer in one run. See README.md here."""
