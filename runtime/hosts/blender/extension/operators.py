"""What the buttons do. A run goes on in the steps of a modal operator, so Blender stays as it is to work with.

In background mode timers never fire, and there is nothing to hold up: there the operator waits.

Blender reads the annotations of operators, so they must not be turned into text (`from __future__ …`).
"""

import os
import random
import shutil
import time
from typing import Any

import bpy

from . import doctor, strips, tasks
from .client import WorkerError
from .connection import Connection, find_command
from .run import CANCELLED, DONE, Run, Task
from .settings import preference
from .spans import StripError
from .state import STATE

_TICK_S = 0.1


def _connect() -> Connection:
    command, _ = find_command(preference("worker"), os.environ, shutil.which)
    bundle = preference("bundle")
    options = ["--bundle", bpy.path.abspath(bundle)] if bundle else []
    return STATE.connected(command, options, lambda: Connection(command, options, bpy.app.tempdir))


class _Running:
    """An operator that makes tasks, runs them and then does something with what became of them."""

    _timer: Any = None

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Blender asks whether the button can be pressed."""
        return not STATE.is_busy

    def tasks(self, context: bpy.types.Context) -> list[Task]:
        """Return what to do.

        Raises:
            StripError: nothing can be done.
        """
        raise NotImplementedError

    def ended(self, context: bpy.types.Context, run: Run) -> None:
        """Do something with the results.

        Raises:
            StripError, OSError: not everything could be done.
        """
        raise NotImplementedError

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Begin. Without a window, also wait for the end."""
        try:
            STATE.run = Run(_connect, self.tasks(context))
        except (StripError, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        STATE.messages = []
        if bpy.app.background:
            while STATE.is_busy:
                STATE.run.step()
                time.sleep(_TICK_S / 4)
            return self._end(context)
        self._timer = context.window_manager.event_timer_add(_TICK_S, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Take a step with each tick. Everything but Esc is Blender's."""
        run = STATE.run
        if run is None:
            return self._end(context)
        if event.type == "ESC" and event.value == "PRESS":
            run.cancel()
            return {"RUNNING_MODAL"}
        if event.type == "TIMER":
            run.step()
            _show(context, run)
            if not STATE.is_busy:
                return self._end(context)
        return {"PASS_THROUGH"}

    def cancel(self, context: bpy.types.Context) -> None:
        """Blender ends the operator, as it opens another file or quits."""
        if STATE.run is not None:
            STATE.run.cancel()
        self._forget(context)

    def _end(self, context: bpy.types.Context) -> set[str]:
        run = STATE.run
        if run is None:
            self._forget(context)
            return {"CANCELLED"}
        try:
            self.ended(context, run)
        except (StripError, OSError, RuntimeError) as error:
            run.problems.append(str(error))
        for problem in run.problems:
            self.report({"ERROR"}, problem)
        if run.state == CANCELLED:
            self.report({"INFO"}, "Cancelled")
        changed = bool(run.results())
        self._forget(context)
        return {"FINISHED"} if changed or run.state == DONE else {"CANCELLED"}

    def _forget(self, context: bpy.types.Context) -> None:
        if self._timer is not None:
            context.window_manager.event_timer_remove(self._timer)
            self._timer = None
        STATE.end_run()
        _show(context, None)


def _show(context: bpy.types.Context, run: Run | None) -> None:
    """Show where a run is, in the status bar and in every sequencer's panel."""
    if bpy.app.background:
        return
    percent = "" if run is None or run.fraction is None else f" {100 * run.fraction:.0f} %"
    for window in context.window_manager.windows:
        window.workspace.status_text_set(None if run is None else f"SelVA: {run.text}{percent}   Esc: cancel")
        for area in window.screen.areas:
            if area.type == "SEQUENCE_EDITOR":
                area.tag_redraw()


class SELVA_OT_generate(_Running, bpy.types.Operator):  # noqa: N801 - Blender's rule for names
    """Generate a stem for each prompt and each selected movie strip."""

    bl_idname = "selva.generate"
    bl_label = "Generate stems"
    bl_options = {"UNDO"}  # noqa: RUF012 - Blender reads it so

    def tasks(self, context: bpy.types.Context) -> list[Task]:
        """One task for each selected movie strip."""
        return tasks.for_movies(strips.sequencer_scene(context))

    def ended(self, context: bpy.types.Context, run: Run) -> None:
        """Add the stems."""
        for place, result in run.results():
            tasks.land(place, result)


class SELVA_OT_again(_Running, bpy.types.Operator):  # noqa: N801
    """Generate the selected stems again with another seed."""

    bl_idname = "selva.again"
    bl_label = "Again with another seed"
    bl_options = {"UNDO"}  # noqa: RUF012

    replace: bpy.props.BoolProperty(
        name="Replace", description="Put the new sound into the same strip", options={"SKIP_SAVE"}
    )

    def tasks(self, context: bpy.types.Context) -> list[Task]:
        """One task for each selected stem."""
        scene = strips.sequencer_scene(context)
        return tasks.for_stems(scene, replace=self.replace, new_seed=lambda: random.randrange(2**31))

    def ended(self, context: bpy.types.Context, run: Run) -> None:
        """Put the new stems where the old ones are, or beside them."""
        for place, result in run.results():
            tasks.land(place, result)


class SELVA_OT_doctor(_Running, bpy.types.Operator):  # noqa: N801
    """Start the worker, and say what it is or what is missing."""

    bl_idname = "selva.doctor"
    bl_label = "Check the worker"

    def tasks(self, context: bpy.types.Context) -> list[Task]:
        """Nothing: the run ends once the worker has answered."""
        return []

    def ended(self, context: bpy.types.Context, run: Run) -> None:
        """Keep the findings for the panel."""
        try:
            command, by = find_command(preference("worker"), os.environ, shutil.which)
        except WorkerError:
            command, by = [], ""
        connection = run.connection
        if run.problems or connection is None or connection.facts is None:
            found = doctor.broken("; ".join(run.problems) or "cancelled", command)
        else:
            try:
                found = doctor.healthy(connection.facts, connection.worker.call("doctor"), command, by)
            except WorkerError as error:
                found = doctor.broken(str(error), command)
        STATE.examined, STATE.install = found
        run.problems.clear()
        for line in [*STATE.examined, STATE.install]:
            print(line)


class SELVA_OT_cancel(bpy.types.Operator):  # noqa: N801
    """Cancel what is being generated."""

    bl_idname = "selva.cancel"
    bl_label = "Cancel"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Cancel. The running operator sees the end."""
        if STATE.run is not None:
            STATE.run.cancel()
        return {"FINISHED"}


class SELVA_OT_copy_install(bpy.types.Operator):  # noqa: N801
    """Copy the line that installs what is missing, for a terminal."""

    bl_idname = "selva.copy_install"
    bl_label = "Copy the line"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Copy."""
        context.window_manager.clipboard = STATE.install
        return {"FINISHED"}


class SELVA_OT_prompt_add(bpy.types.Operator):  # noqa: N801
    """Add a prompt."""

    bl_idname = "selva.prompt_add"
    bl_label = "Add a prompt"
    bl_options = {"UNDO"}  # noqa: RUF012

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Add."""
        settings = strips.sequencer_scene(context).selva
        settings.prompts.add()
        settings.active = len(settings.prompts) - 1
        return {"FINISHED"}


class SELVA_OT_prompt_remove(bpy.types.Operator):  # noqa: N801
    """Remove the active prompt."""

    bl_idname = "selva.prompt_remove"
    bl_label = "Remove the prompt"
    bl_options = {"UNDO"}  # noqa: RUF012

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Remove."""
        settings = strips.sequencer_scene(context).selva
        settings.prompts.remove(settings.active)
        settings.active = max(0, min(settings.active, len(settings.prompts) - 1))
        return {"FINISHED"}


_CLASSES = (
    SELVA_OT_generate,
    SELVA_OT_again,
    SELVA_OT_doctor,
    SELVA_OT_cancel,
    SELVA_OT_copy_install,
    SELVA_OT_prompt_add,
    SELVA_OT_prompt_remove,
)


def register() -> None:
    """Make the operators known to Blender."""
    for kind in _CLASSES:
        bpy.utils.register_class(kind)


def unregister() -> None:
    """Undo `register`, and let the worker leave."""
    for kind in reversed(_CLASSES):
        bpy.utils.unregister_class(kind)
    STATE.end_run()
    STATE.disconnect()
