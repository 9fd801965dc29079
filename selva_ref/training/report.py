"""A run's output for the user: TensorBoard files, and one line on the terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

LINE_EVERY_S = 30.0
"""Without a terminal, a line is printed this often instead of being redrawn."""
REDRAW_S = 0.2


class Report:
    """Writes curves, pictures and sounds of one stage, by the number of steps done."""

    def __init__(self, folder: Path, *, stage: str, steps: int, start: int) -> None:
        self.stage, self.steps, self.start = stage, steps, start
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)  # steps after the resumed state are shown again
        self._began_s = time.monotonic()
        self._shown_s = float("-inf")
        self._live = sys.stderr.isatty()

    def curves(self, step: int, **values: float) -> None:
        """Writes scalars; a name such as `loss__train` becomes `loss/train`."""
        for name, value in values.items():
            self._writer.add_scalar(name.replace("__", "/"), value, step)

    def picture(self, name: str, picture_3HW: Tensor, step: int) -> None:
        """Writes a uint8 picture."""
        self._writer.add_image(name, picture_3HW.cpu(), step)

    def sound(self, name: str, wave_N: Tensor, rate_hz: int, step: int) -> None:
        """Writes a float32 sound in [-1, 1]."""
        self._writer.add_audio(name, wave_N.cpu()[None], step, sample_rate=rate_hz)

    def line(self, step: int, loss: float) -> None:
        """Shows the progress of the run and the remaining time."""
        now_s = time.monotonic()
        if now_s - self._shown_s < (REDRAW_S if self._live else LINE_EVERY_S) and step < self.steps:
            return
        self._shown_s = now_s
        step_s = (now_s - self._began_s) / (step - self.start)
        left = f"{step_s:.2f} s a step, {duration(step_s * (self.steps - step))} left"
        text = f"{self.stage} {step}/{self.steps}  loss {loss:.5f}  {left}"
        print(f"\r{text:<78}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the terminal's line and closes the files."""
        if self._live:
            print(file=sys.stderr)
        self._writer.close()


def duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def film_strip(frames_T3HW: Tensor, pictures: int = 8) -> Tensor:
    """Frames from start to end, side by side: uint8 (3, H, pictures * W)."""
    places = torch.linspace(0, len(frames_T3HW) - 1, pictures).round().long()
    return torch.cat(list(frames_T3HW[places.to(frames_T3HW.device)]), dim=-1)


def mel_picture(*mels: Tensor) -> Tensor:
    """Stacks log-mels (bands, T) on one scale, low bands at the bottom: uint8 (3, H, T), grey."""
    stacked = torch.cat([mel.float().flip(0) for mel in mels])
    low, high = stacked.min(), stacked.max()
    grey = ((stacked - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)
    return grey.expand(3, -1, -1)
