"""Deployment forms of the networks: equal to `selva_ref` in exact arithmetic, and fast on the engines.

`selva_ref` is the model as the papers describe it. One file per network says what is rewritten and why; tests compare
each form with the reference (`tests/test_export_rewrites.py`), and the export compares each graph.
"""

from __future__ import annotations

from torch import nn

from selva_export.rewrites import clip_image, generator, text, vae, video_encoder, vocoder


def rewrite(graph: nn.Module) -> nn.Module:
    """Replaces every network and layer that has a deployment form, and returns the module to export.

    The forms take over the weights and change some of them in place: the plain networks cannot be used afterwards.
    """
    root = nn.ModuleDict({"graph": graph})  # so that `graph` itself can be replaced
    for network in (text, video_encoder, clip_image, generator, vae, vocoder):
        network.rewrite(root)
    return root["graph"]
