"""MLflow: `pip install nest-dist[mlflow]`."""

import os
import pathlib
import re
import tempfile
import time
import typing
from collections.abc import Mapping

from nest_dist.base import settings
from nest_dist.telemetry import trackers

_KEY = "nest_dist.run"
_MOST_PARAMS = 100  # in a request


@settings.register
class MLflow:
    """Sends a run to a server of MLflow, or writes it into WORKDIR/mlflow.db and WORKDIR/mlflow.

    Attributes:
        uri: of the server, as http://HOST:5000, or of a data base; None writes into the workdir,
            for `mlflow ui --backend-store-uri=sqlite:///WORKDIR/mlflow.db`.
        experiment: in which the run is listed.
    """

    library: typing.ClassVar[str] = "mlflow"

    uri: str | None = None
    experiment: str = "nest_dist"

    @property
    def needs_folder(self) -> bool:
        return self.uri is None

    def open(
        self, identity: trackers.Identity, config: Mapping[str, trackers.Value]
    ) -> trackers.Log:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        client = mlflow.MlflowClient(self.uri or f"sqlite:///{identity.folder / 'mlflow.db'}")
        if known := client.get_experiment_by_name(self.experiment):
            experiment_id = known.experiment_id
        else:
            location = None if self.uri else (identity.folder / "mlflow").as_uri()
            experiment_id = client.create_experiment(self.experiment, location)
        earlier = client.search_runs([experiment_id], f"tags.`{_KEY}` = '{identity.key}'")
        if earlier:
            run_id = earlier[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            made = client.create_run(
                experiment_id, tags={_KEY: identity.key}, run_name=identity.name
            )
            run_id = made.info.run_id
        # A parameter never changes; the file has the values of the newest attempt.
        params = earlier[0].data.params if earlier else {}
        new = [
            mlflow.entities.Param(name, str(value))
            for binding, value in config.items()
            if (name := _name(binding)) not in params
        ]
        for start in range(0, len(new), _MOST_PARAMS):
            client.log_batch(run_id, params=new[start : start + _MOST_PARAMS])
        client.log_dict(run_id, dict(config), "configuration.json")
        return _Log(client, run_id, mlflow.entities.Metric)


class _Log:
    def __init__(self, client: typing.Any, run_id: str, metric: typing.Any) -> None:
        self._client, self._run_id, self._metric = client, run_id, metric

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def picture(self, step: int, name: str, data: bytes, ending: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"step_{step:09}.{ending}"
            path.write_bytes(data)
            self._client.log_artifact(self._run_id, str(path), name)

    def close(self, complete: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if complete else "KILLED")


def _name(name: str) -> str:
    """A name without characters that MLflow refuses."""
    return re.sub(r"[^\w.\-/ ]", "_", name)
