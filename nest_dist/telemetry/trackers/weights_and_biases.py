"""Weights & Biases: `pip install nest-dist[wandb]`."""

import os
import pathlib
import tempfile
import typing
from collections.abc import Mapping

from nest_dist.base import settings
from nest_dist.telemetry import trackers

_STEP = "step"


@settings.register
class WeightsAndBiases:
    """Sends a run to Weights & Biases, or writes it into WORKDIR/wandb.

    Attributes:
        project: in which the run is listed.
        entity: user or team of the project; None takes the default of the key.
        mode: "online" sends at once, with the key of `wandb login` or WANDB_API_KEY. "offline"
            needs neither network nor key; `wandb sync` sends what it has written.
    """

    library: typing.ClassVar[str] = "wandb"
    needs_folder: typing.ClassVar[bool] = False

    project: str = "nest_dist"
    entity: str | None = None
    mode: typing.Literal["online", "offline"] = "online"

    def open(
        self, identity: trackers.Identity, config: Mapping[str, trackers.Value]
    ) -> trackers.Log:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=identity.key,
            name=identity.name,
            dir=str(identity.folder),
            mode=self.mode,
            config=dict(config),
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, save_code=False
            ),
        )
        # An attempt may begin before the end of the last one, and W&B's own steps never go back.
        run.define_metric(_STEP, hidden=True)
        run.define_metric("*", step_metric=_STEP)
        return _Log(run, wandb.Image)


class _Log:
    def __init__(self, run: typing.Any, image: typing.Any) -> None:
        self._run, self._image = run, image

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, _STEP: step})

    def picture(self, step: int, name: str, data: bytes, ending: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"picture.{ending}"
            path.write_bytes(data)
            self._run.log({name: self._image(str(path)), _STEP: step})

    def close(self, complete: bool) -> None:
        if not complete:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if complete else 1)
