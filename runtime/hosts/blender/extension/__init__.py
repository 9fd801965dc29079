"""SelVA stems in Blender's Video Sequencer.

Nothing of the model runs in Blender: selva-worker is another process with a Python of its own. Only `settings.py`,
`strips.py`, `tasks.py`, `operators.py` and `panel.py` need Blender's `bpy`. The rest is tested without it.
"""

from __future__ import annotations


def register() -> None:
    """Called by Blender when the extension is enabled."""
    from . import operators, panel, settings

    for module in (settings, operators, panel):
        module.register()


def unregister() -> None:
    """Called by Blender when the extension is disabled, and when Blender quits."""
    from . import operators, panel, settings

    for module in (panel, operators, settings):
        module.unregister()
