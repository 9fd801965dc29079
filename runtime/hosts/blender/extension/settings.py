"""What the user chose: in the preferences how the worker is found, in the scene what to generate.

Blender reads the annotations of these classes, so they must not be turned into text (`from __future__ …`).
"""

import bpy
from bpy.props import CollectionProperty, IntProperty, PointerProperty, StringProperty

MAX_SEED = 2**31 - 1
"""Blender's whole numbers have 32 bits."""
_RELATIVE = {"PATH_SUPPORTS_BLEND_RELATIVE"} if bpy.app.version >= (5, 0, 0) else set()
"""Paths may begin with //, the folder of the .blend file. Blender 5 wants to be told."""


class SelvaPrompt(bpy.types.PropertyGroup):
    """A thing to hear."""

    name: StringProperty(name="Prompt", description="What to hear, such as: dog barking")


class SelvaSettings(bpy.types.PropertyGroup):
    """What to generate. It is kept in the .blend file."""

    prompts: CollectionProperty(type=SelvaPrompt)
    active: IntProperty(name="Active prompt")
    negative: StringProperty(name="Negative", description="What not to hear")
    takes: IntProperty(
        name="Takes", description="Versions of each stem; all but the first are muted", default=1, min=1, max=64
    )
    seed: IntProperty(name="Seed", description="The same seed gives the same sound", default=0, min=0, max=MAX_SEED)
    steps: IntProperty(
        name="Steps", description="Quality: more steps take longer. 0: the model's default", default=0, min=0, max=1000
    )
    out: StringProperty(
        name="Folder", description="Where the stems' files go", default="//stems", subtype="DIR_PATH", options=_RELATIVE
    )


class SelvaPreferences(bpy.types.AddonPreferences):
    """How the worker is found and what it loads."""

    bl_idname = __package__

    worker: StringProperty(
        name="Worker",
        description="selva-worker, or the Python that has selva-deploy. Empty: SELVA_PYTHON, or else PATH",
        subtype="FILE_PATH",
    )
    bundle: StringProperty(
        name="Bundle",
        description="Folder from selva-export. Empty: SELVA_BUNDLE, or else the toy demo",
        subtype="DIR_PATH",
    )

    def draw(self, context: bpy.types.Context) -> None:
        """Draw the preferences."""
        from .panel import draw_doctor

        self.layout.prop(self, "worker")
        self.layout.prop(self, "bundle")
        draw_doctor(self.layout)


def preference(name: str) -> str:
    """Return a preference. Empty if the user gave none."""
    addon = bpy.context.preferences.addons.get(__package__)
    return getattr(addon.preferences, name) if addon is not None and addon.preferences is not None else ""


_CLASSES = (SelvaPrompt, SelvaSettings, SelvaPreferences)


def register() -> None:
    """Make the settings known to Blender."""
    for kind in _CLASSES:
        bpy.utils.register_class(kind)
    bpy.types.Scene.selva = PointerProperty(type=SelvaSettings)


def unregister() -> None:
    """Undo `register`. What is in .blend files stays there."""
    del bpy.types.Scene.selva
    for kind in reversed(_CLASSES):
        bpy.utils.unregister_class(kind)
