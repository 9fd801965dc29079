"""Loads the VST3, lets it generate and plays it while the transport stands: PLUGIN RATE STEM PRESET.

It waits for the file STEM, goes on for a while, prints the loudest sample, and saves PRESET.
"""

import os
import sys
import time

import numpy as np
import pedalboard

path, rate_hz, stem, preset = sys.argv[1:]
plugin = pedalboard.load_plugin(path)


def played() -> float:
    time.sleep(0.02)
    return float(np.abs(plugin.process([], 0.05, int(rate_hz), 2, 512, reset=False)).max())


loudest, after, end_s = played(), 0, time.monotonic() + 60
plugin.generate = 1
while after < 20 and time.monotonic() < end_s:
    loudest = max(loudest, played())
    after += os.path.exists(stem)
print(sorted(plugin.parameters), after, loudest)
with open(preset, "wb") as file:
    file.write(plugin.preset_data)
