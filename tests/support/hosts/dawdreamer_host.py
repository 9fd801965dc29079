"""Renders the VST3 with a playing transport: PLUGIN RATE BLOCK COUNT OUT [PRESET]. Without a preset it generates."""

import sys
import time

import dawdreamer
import numpy as np

plugin_path, rate_hz, block, count, out, *preset = sys.argv[1:]
engine = dawdreamer.RenderEngine(int(rate_hz), int(block))
plugin = engine.make_plugin_processor("selva", plugin_path)
if preset:
    plugin.load_vst3_preset(preset[0])
engine.load_graph([(plugin, [])])
if not preset:
    engine.render(0.1)
    plugin.set_parameter(0, 1.0)
end_s = time.monotonic() + 60
while True:
    engine.render(int(count) / int(rate_hz))
    sound = engine.get_audio().astype("float32")
    if preset or np.abs(sound).max() > 0 or time.monotonic() > end_s:
        break
    time.sleep(0.05)
sound.tofile(out)
