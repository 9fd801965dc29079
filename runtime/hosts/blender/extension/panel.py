"""The panel in the sequencer's sidebar."""

from __future__ import annotations

from typing import Any

import bpy

from . import strips
from .run import Run
from .state import STATE

_LINE_CHARACTERS = 44


class SELVA_UL_prompts(bpy.types.UIList):  # noqa: N801 - Blender's rule for names
    """The prompts, to be edited in place."""

    def draw_item(self, context: Any, layout: Any, data: Any, item: Any, icon: Any, active: Any, name: Any) -> None:
        """Draw a prompt."""
        layout.prop(item, "name", text="", emboss=False, icon="SOUND")


class SELVA_PT_stems(bpy.types.Panel):  # noqa: N801
    """What to hear, and what goes on."""

    bl_label = "SelVA stems"
    bl_space_type = "SEQUENCE_EDITOR"
    bl_region_type = "UI"
    bl_category = "SelVA"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Show it wherever strips are seen."""
        return context.space_data.view_type in {"SEQUENCER", "SEQUENCER_PREVIEW"}

    def draw(self, context: bpy.types.Context) -> None:
        """Draw the panel."""
        layout = self.layout
        settings = strips.sequencer_scene(context).selva
        row = layout.row()
        row.template_list("SELVA_UL_prompts", "", settings, "prompts", settings, "active", rows=3)
        column = row.column(align=True)
        column.operator("selva.prompt_add", text="", icon="ADD")
        column.operator("selva.prompt_remove", text="", icon="REMOVE")
        layout.prop(settings, "negative")
        column = layout.column(align=True)
        for name in ("takes", "seed", "steps"):
            column.prop(settings, name)
        layout.prop(settings, "out")
        if STATE.run is not None and STATE.is_busy:
            _draw_run(layout, STATE.run)
        else:
            _draw_buttons(layout)
        _draw_lines(layout, STATE.messages)
        _draw_record(layout, context)


class SELVA_PT_worker(bpy.types.Panel):  # noqa: N801
    """What the worker is, or what is missing."""

    bl_label = "Worker"
    bl_space_type = "SEQUENCE_EDITOR"
    bl_region_type = "UI"
    bl_category = "SelVA"
    bl_options = {"DEFAULT_CLOSED"}  # noqa: RUF012 - Blender reads it so

    poll = SELVA_PT_stems.poll

    def draw(self, context: bpy.types.Context) -> None:
        """Draw the panel."""
        draw_doctor(self.layout)


def draw_doctor(layout: bpy.types.UILayout) -> None:
    """Draw the button that examines the worker, and what it found."""
    layout.operator("selva.doctor", icon="CHECKMARK")
    _draw_lines(layout, STATE.examined)
    if STATE.install:
        _draw_lines(layout, ["To install it, run in a terminal:", STATE.install])
        layout.operator("selva.copy_install", icon="COPYDOWN")


def _draw_buttons(layout: bpy.types.UILayout) -> None:
    layout.operator("selva.generate", icon="PLAY")
    row = layout.row(align=True)
    row.operator("selva.again", text="Another seed", icon="FILE_REFRESH")
    row.operator("selva.again", text="Replace", icon="UV_SYNC_SELECT").replace = True


def _draw_run(layout: bpy.types.UILayout, run: Run) -> None:
    percent = "" if run.fraction is None else f" {100 * run.fraction:.0f} %"
    if hasattr(layout, "progress"):  # since Blender 4.0
        layout.progress(factor=run.fraction or 0.0, type="BAR", text=run.text + percent)
    else:
        layout.label(text=run.text + percent, icon="TIME")
    layout.operator("selva.cancel", text="Cancel (Esc)", icon="CANCEL")


def _draw_record(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Draw what the active strip was made from, if it is a stem."""
    editor = strips.sequencer_scene(context).sequence_editor
    strip = editor.active_strip if editor is not None else None
    if strip is None or strips.RECORD not in strip:
        return
    record = strip[strips.RECORD]
    line = f"Seed {record.get('seed')}, take {record.get('take')}, {record.get('steps')} steps"
    _draw_lines(layout, [str(record.get("prompt")), line])


def _draw_lines(layout: bpy.types.UILayout, lines: list[str]) -> None:
    """Draw text. Blender does not wrap it."""
    if not lines:
        return
    column = layout.box().column(align=True)
    for line in lines:
        rest = line
        while rest:
            cut = len(rest) if len(rest) <= _LINE_CHARACTERS else rest.rfind(" ", 1, _LINE_CHARACTERS) + 1
            part, rest = rest[: cut or _LINE_CHARACTERS], rest[cut or _LINE_CHARACTERS :]
            column.label(text=part)


_CLASSES = (SELVA_UL_prompts, SELVA_PT_stems, SELVA_PT_worker)


def register() -> None:
    """Make the panels known to Blender."""
    for kind in _CLASSES:
        bpy.utils.register_class(kind)


def unregister() -> None:
    """Undo `register`."""
    for kind in reversed(_CLASSES):
        bpy.utils.unregister_class(kind)
