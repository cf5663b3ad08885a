"""The Python API of a cluster: connect, train, and what a run gives back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from ..datasets.masking import refuse_secrets
from ..trainers.config import (
    ConfigError,
    RunSpec,
    absolute_uri,
    check_run_name,
    load_config,
    with_absolute_uris,
)
from ..trainers.predict import Predictor
from ..trainers.prepare import prepare
from ..trainers.report import write_report
from ..trainers.run_dir import RunDir
from ..trainers.tracking import open_tracker
from . import jobs
from .driver import drive
from .evaluate import evaluate_run
from .jobs import Job
from .token_file import keep_token_private
from .watch import resume_command, watched

OnEvent = Callable[[dict[str, Any]], None]


class Run:
    """A finished run, by its directory."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.dir = RunDir(uri)

    @property
    def path(self) -> Path:
        """The run's folder; for runs on a file system of this machine."""
        path = self.dir.local_path
        if path is None:
            raise ValueError(f"{self.uri} is not on a local file system; read it through .dir")
        return path

    @cached_property
    def metrics(self) -> dict[str, float]:
        """`test/accuracy`, `baseline/test/accuracy`, `pseudo/accuracy` ..."""
        return dict(self.dir.read_json("result.json"))

    def labels(self) -> pa.Table:
        """key, label, confidence, source ("given", "graph", "network"), round; a row per node."""
        return self.dir.read_table("labels.parquet")

    def predict(self, inputs: Any) -> Any:
        """Class probabilities of inputs that the run has never seen, with the graph if needed."""
        return self._predictor.predict(inputs)

    def evaluate(
        self, split: str = "test", attack: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Accuracy on held-out samples, clean and under attack ("fgsm", "ifgsm" or "cw").

        `options` are those of `cluster.evaluate.evaluate_run`: `eps`, `count`, `batch_size` ...
        """
        return evaluate_run(self.uri, split=split, attack=attack, **options)

    def report(self) -> Path:
        """Write `report.html` anew and return its path."""
        return write_report(self.path)

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.dir)


class Cluster:
    """A Ray cluster to run on. Ray is started or joined when the first run needs it."""

    def __init__(self, address: str | None = None, *, verbose: bool = False) -> None:
        self._given = address
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._verbose = verbose
        self._owns_ray = False

    def train(
        self,
        config: str | Path | RunSpec,
        *,
        set: Mapping[str, Any] | None = None,
        name: str | None = None,
        resume: bool = False,
        out: str | None = None,
        on_event: OnEvent | None = None,
        report: bool = True,
    ) -> Run:
        """Train to the end.

        Args:
            config: A shipped configuration's name, a TOML file, or a checked spec.
            set: Overrides by dotted key, `{"graph.k": 32}`.
            name: Of the run; its folder is `<output.uri>/<name>`. Default: the configuration's.
            resume: Go on from the last checkpoint of a run of the same name.
            out: Where runs are written (any fsspec URI), instead of `output.uri`.
            on_event: Called with progress records while the run goes on.
            report: Write `report.html` at the end, for runs on a file system of this machine.

        Raises:
            ConfigError, ResourceError: Bad input; nothing was started or written.
            RunFailed: The run broke.
            RunPaused: It was stopped (SIGTERM) and made a checkpoint; `resume` goes on.
        """
        spec = config if isinstance(config, RunSpec) else load_config(config, set)
        if name is not None:
            spec = spec.model_copy(update={"name": check_run_name(name)})
        refuse_secrets(out, "--out")
        uri = f"{(out or spec.output.uri).rstrip('/')}/{spec.name}"
        run = RunDir(absolute_uri(uri))
        spec = with_absolute_uris(spec)
        prepared = prepare(spec, run, resume=resume)
        tracker = open_tracker(spec, run, num_nodes=len(prepared.split.rows))
        if spec.train.engine == "deepspeed":
            self.start()
            from .nodes import plan_now

            plan_now(spec)  # refused before anything is written
        if not run.exists("result.json"):
            again = resume_command(config, set or {}, name=name, out=out)
            with watched(spec, run, tracker, resume=again, on_event=on_event) as tell:
                drive(spec, run, prepared, on_event=tell)
        finished = Run(run.uri)
        if report and run.local_path is not None:
            finished.report()
        return finished

    def submit(self, args: Sequence[str], **options: Any) -> Job:
        """Run a command on the cluster, from any machine: `["train", "dag-cifar10", "--set", ...]`.

        This package's source, and small local files that the command names, go with it.
        `options`: `env` (variables of the job), `cpus`, `gpus`, `memory` (of its driver) and
        `job_id`; see `cluster.jobs.submit`.

        Raises:
            ConfigError: No cluster there, a wrong token, or a command that cannot work.
        """
        return jobs.submit(args, address=self._given, **options)

    def status(self) -> dict[str, Any]:
        """Nodes, what they lend and what of it is in use, and jobs: `cluster.jobs.cluster_status`.

        Once a run has joined or started a Ray here, it is that Ray's.
        """
        if self._owns_ray and self._given is None:
            return jobs.joined_status()
        return jobs.cluster_status(self._given)

    def logs(self, job: Job | str, follow: bool = False) -> str | Iterator[str]:
        """What a job has printed; or, followed, piece by piece until it has ended."""
        return self._job(job).logs(follow)

    def stop(self, job: Job | str, wait: bool = True) -> str:
        """Stop a job; a run writes a checkpoint first. Returns the job's state."""
        return self._job(job).stop(wait)

    def _job(self, job: Job | str) -> Job:
        return job if isinstance(job, Job) else jobs.find_job(job, self._given)

    def tune(
        self,
        sweep: str | Path,
        *,
        set: Mapping[str, Any] | None = None,
        name: str | None = None,
        resume: bool = False,
        out: str | None = None,
        on_event: OnEvent | None = None,
    ) -> Any:
        """Search hyperparameters by training runs; a `tune.sweep.Sweep` with `.best`, `.table()`.

        Args:
            sweep: A shipped sweep's name or a TOML file.
            set: Overrides by dotted key: of the runs (`{"graph.k": 9}`), or of the sweep
                (`search.*`, `scheduler.*`, metric, mode).
            name: Of the sweep; its folder is `<output.uri>/<name>`. Default: the sweep's own.
            resume: Go on with the points that are not done, of a sweep of the same name.
            out: Where sweeps are written (any fsspec URI), instead of the runs' `output.uri`.
            on_event: Called with progress records while the sweep goes on.

        Raises:
            ConfigError, ResourceError: Bad input; nothing was started.
        """
        # Sweeps are made of runs on a cluster, so `tune` imports this module and not the other way
        # round; who asks for a sweep gets that part by its name.
        sweeps = import_module("..tune.sweep", __package__)
        return sweeps.run_sweep(
            self, sweep, set=set, name=name, resume=resume, out=out, on_event=on_event
        )

    def close(self) -> None:
        """Stop the Ray that was started here; a joined one is left running."""
        if self._owns_ray:
            import ray

            ray.shutdown()
            self._owns_ray = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Join the cluster, or start a Ray on this machine, unless that has been done.

        Raises:
            ConfigError: No cluster answers at the address, or tokens are turned off.
        """
        # Tokens are Ray's own default; said here so that an older environment cannot turn it off
        # by leaving the variable out.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray

        if ray.is_initialized():
            return
        if self._address is not None and self._address.startswith(("http://", "https://")):
            raise ConfigError(
                f"{self._address} is a dashboard, to which jobs can be submitted (`labelmesh "
                "submit`); to train from this process join the cluster by HOST:6379 from one of "
                "its machines"
            )
        options: dict[str, Any] = {
            "namespace": "labelmesh",
            "log_to_driver": self._verbose,
            "logging_level": "INFO" if self._verbose else "ERROR",
        }
        if self._address is None:
            if os.environ["RAY_AUTH_MODE"] != "token":
                raise ConfigError(
                    f"RAY_AUTH_MODE = {os.environ['RAY_AUTH_MODE']!r}: whoever reaches this "
                    "machine could run code in the Ray that would be started; unset the variable"
                )
            options["include_dashboard"] = False
        try:
            ray.init(address=self._address, **options)
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster answers at {self._address!r} ({error}); start one with "
                "`ray start --head`, or unset RAY_ADDRESS to run on this machine"
            ) from None
        keep_token_private()
        self._owns_ray = True


def connect(address: str | None = None, *, verbose: bool = False) -> Cluster:
    """A cluster: `address`, else RAY_ADDRESS, else a local Ray that is started when needed.

    Args:
        verbose: Show what Ray and the workers print.
    """
    return Cluster(address, verbose=verbose)
