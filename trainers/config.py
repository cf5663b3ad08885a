"""From one TOML file and `--set key=value` overrides to a checked, frozen `RunSpec`.

A field lives on the component that reads it. Unknown keys are errors that name the nearest known
key. DeepSpeed's own options pass through `train.deepspeed` as they are.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from ..datasets.masking import refuse_secrets
from ..datasets.transforms import VECTOR_VIEWS
from .method import Method, find_method, method_names

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
_Count = Annotated[int, Field(ge=1)]
_BETAS = (0.9, 0.999)
_LONGEST_NAME = 128
_RUN_NAME = re.compile(rf"\w[\w .,+=@()\-]{{0,{_LONGEST_NAME - 1}}}")
_MAX_CONFIG_BYTES = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )


class DataSpec(_Section):
    """What is trained on.

    `split_file`: a published list (Parquet with `dataset`, `n_labels`, `split`, `index`) and
    `split_dataset`, `split_num_labels`, `split_number` choose the labeled nodes; otherwise
    `labels_per_class` are drawn by `split_seed`; otherwise the manifest's labels are taken.
    `builtin = "digits"` imports scikit-learn's digits to `uri` if nothing is there yet.
    """

    uri: str
    builtin: Literal["digits"] | None = None
    labels_per_class: int | None = Field(None, ge=1)
    split_seed: int = 0
    split_file: str | None = None
    split_dataset: str | None = None
    split_num_labels: int | None = None
    split_number: int = 0
    val_share: Share = 0.0
    num_nodes: int | None = Field(None, ge=1, description="seeded subset of the training samples")
    weak: str = "crop"
    strong: str = "affine_erase"
    cache_mb: int = Field(512, ge=0)
    max_broken_share: Share = 0.01

    @model_validator(mode="after")
    def _one_source_of_labels(self) -> DataSpec:
        if self.split_file is not None and self.labels_per_class is not None:
            raise ValueError(
                "data.labels_per_class and data.split_file both choose the labeled samples; "
                "give one of them"
            )
        if self.split_file is not None and None in (self.split_dataset, self.split_num_labels):
            raise ValueError("data.split_file needs data.split_dataset and data.split_num_labels")
        if self.split_file is None and (self.split_dataset or self.split_num_labels):
            raise ValueError("data.split_dataset and data.split_num_labels need data.split_file")
        return self


class ModelSpec(_Section):
    """The network. `weights`: what the backbone starts from, a `.safetensors`, `.pth` or `.pt`
    file or a finished run's directory. `stem` and `pixels` are of residual networks: "auto" takes
    the small stem for images of up to 64 pixels; weights that were trained on ImageNet want
    `pixels = "imagenet"`, its mean and standard deviation.

    `freeze`: the backbone is not trained, but for its projection where it has one.
    `cache_features` (as `freeze` unless told): its features are computed once and kept in
    `cache_dir`, a folder `cache` beside the run's own unless told, which runs share."""

    backbone: str = "cnn_small"
    feature_dim: int = Field(128, ge=1)
    stem: Literal["auto", "small", "imagenet"] = "auto"
    pixels: Literal["symmetric", "imagenet"] = "symmetric"
    weights: str | None = None
    freeze: bool = False
    cache_features: bool | None = None
    cache_dir: str | None = None

    @property
    def caches(self) -> bool:
        """Whether training sees features that were computed before it."""
        return self.freeze and self.cache_features is not False

    @model_validator(mode="after")
    def _caches_what_stands_still(self) -> ModelSpec:
        if self.cache_features and not self.freeze:
            raise ValueError(
                "model.cache_features = true needs model.freeze = true: the features of a backbone "
                "that is trained change"
            )
        if self.cache_dir is not None and not self.caches:
            raise ValueError("model.cache_dir is used where features are cached alone")
        return self


class GraphSpec(_Section):
    """The graph. `update = "exact"` follows the features and searches only what their motion could
    have changed (`tolerance` > 0: neighbours may be that share farther than the true ones);
    "refine" improves the old graph until its measured recall reaches `recall_target`. `slack` is
    the size of the lists behind "exact", chosen from the drift that is seen where it is 0.

    `log_uri`: where shards log what they are told, so that a killed one comes back as it was: a
    folder that all machines of the cluster see. "auto" is one in the run's own folder where that
    lies on a file system; "" is none: then a killed shard costs the steps since the last
    checkpoint."""

    k: int = Field(15, ge=1)
    metric: Literal["cosine", "euclidean"] = "cosine"
    num_shards: int = Field(1, ge=1)
    device: str = "auto"
    backend: Literal["auto", "torch", "faiss", "ivf"] = "auto"
    dtype: Literal["float32", "float16"] = "float32"
    update: Literal["exact", "refine"] = "exact"
    recall_target: float = Field(0.99, gt=0, lt=1)
    tolerance: float = Field(0.0, ge=0)
    slack: int = Field(0, ge=0)
    log_uri: str = "auto"


class RefreshSpec(_Section):
    """Rounds are computed with the averaged network; `train.ema_decay = 0` makes it the trained."""

    every_epochs: int = Field(1, ge=1)


class TrainSpec(_Section):
    """The loop. `batch_size` is global; `micro_batches` cuts it into the units of batch norm,
    mixup and gradient accumulation, so the result is the same for every `num_workers` that
    divides `micro_batches`. `num_workers = [2, 8]` is elastic: the run begins, and goes on after
    losses, with the largest such number that there is room for."""

    engine: Literal["deepspeed", "local"] = "deepspeed"
    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=1)
    labeled_per_batch: int = Field(32, ge=1)
    micro_batches: int = Field(2, ge=1)
    steps_per_epoch: int | None = Field(None, ge=1)
    warmup_steps: int = Field(0, ge=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.03, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    betas: tuple[Decay, Decay] = Field(_BETAS, description="of AdamW")
    weight_decay: float = Field(5e-4, ge=0)
    decay_norm_and_bias: bool = Field(
        False, description="weight decay of parameters of one dimension too"
    )
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    cosine_end: float | None = Field(None, gt=0, description="epoch at which the cosine is 0")
    step_epochs: tuple[float, ...] = ()
    step_factor: float = Field(0.1, gt=0, le=1)
    lr_warmup_steps: int = Field(0, ge=0)
    baseline_steps: int | None = Field(
        None, ge=0, description="steps of the supervised baseline; none = as many as the run's"
    )
    score_test: bool = Field(
        True, description="read the test split, once, at the end; the runs of sweeps never do"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1)
    grad_clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 = no clipping")
    num_workers: _Count | tuple[_Count, _Count] = Field(
        1, description="a number, or [least, most]: then as many as the cluster has room for"
    )
    max_failures: int = Field(
        3, ge=0, description="lost processes or machines in a row without a new checkpoint"
    )
    wait_for_room_s: float = Field(
        600.0, ge=0, description="how long to wait for the least number of workers"
    )
    threads_per_worker: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = Field(False, description="torch.compile of the network in training steps")
    eval_every_epochs: int = Field(1, ge=1)
    checkpoint_every_epochs: int = Field(1, ge=1)
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="also within epochs, counted over the whole run"
    )
    keep_checkpoints: int = Field(2, ge=1)
    pause_after: int | None = Field(
        None, ge=1, description="stop after this epoch's checkpoint, to go on with --resume later"
    )
    extract_batch_size: int = Field(128, ge=1)
    deepspeed: dict[str, Any] = Field(default_factory=dict)

    @property
    def world_sizes(self) -> tuple[int, ...]:
        """Numbers of workers that the run may have, largest first.

        All divide `micro_batches`: each worker does the same share of every step, and the global
        batch is what it was.
        """
        asked = self.num_workers
        least, most = asked if isinstance(asked, tuple) else (asked, asked)
        return tuple(n for n in range(most, least - 1, -1) if self.micro_batches % n == 0)

    @model_validator(mode="after")
    def _used(self) -> TrainSpec:
        ours = {
            "train_batch_size": "train.batch_size",
            "train_micro_batch_size_per_gpu": "train.micro_batches",
            "gradient_accumulation_steps": "train.micro_batches",
            "gradient_clipping": "train.grad_clip",
            "bf16": "train.precision",
            "fp16": "train.precision",
            "torch_autocast": "train.precision",
            "optimizer": "train.optimizer",
            "scheduler": "train.schedule",
        }
        for key in self.deepspeed.keys() & ours.keys():
            raise ValueError(f"train.deepspeed.{key} is decided by {ours[key]}; set that instead")
        if self.optimizer != "adamw" and self.betas != _BETAS:
            raise ValueError("train.betas is used by train.optimizer = 'adamw' alone")
        if self.step_epochs and self.schedule != "step":
            raise ValueError("train.step_epochs is used by train.schedule = 'step' alone")
        if self.cosine_end is not None and self.schedule != "cosine":
            raise ValueError("train.cosine_end is used by train.schedule = 'cosine' alone")
        return self

    @model_validator(mode="after")
    def _divides(self) -> TrainSpec:
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(
                f"train.num_workers = {list(self.num_workers)}: the first is the least, the second "
                f"the most; swap them"
            )
        if not self.world_sizes:
            is_range = isinstance(self.num_workers, tuple)
            asked = str(self.num_workers).replace("(", "[").replace(")", "]")
            divides = "holds no divisor of" if is_range else "does not divide"
            raise ValueError(
                f"train.num_workers = {asked} {divides} train.micro_batches = "
                f"{self.micro_batches}; set train.micro_batches to a multiple of it"
            )
        for name in ("batch_size", "labeled_per_batch"):
            if getattr(self, name) % self.micro_batches:
                raise ValueError(
                    f"train.{name} = {getattr(self, name)} is no multiple of "
                    f"train.micro_batches = {self.micro_batches}"
                )
        if self.labeled_per_batch > self.batch_size:
            raise ValueError(
                f"train.labeled_per_batch = {self.labeled_per_batch} is more than "
                f"train.batch_size = {self.batch_size}"
            )
        return self


class ResourcesSpec(_Section):
    """What one trainer and one shard ask of Ray. Shards and trainers work in turn, so halves
    of a core or a GPU let them share it. `placement`: over as many nodes as there are trainers, or
    on as few as hold them (gradients then travel between the GPUs of a node)."""

    cpus_per_trainer: float = Field(0.5, ge=0)
    cpus_per_shard: float = Field(0.5, ge=0)
    gpus_per_trainer: float = Field(0.0, ge=0)
    gpus_per_shard: float = Field(0.0, ge=0)
    placement: Literal["spread", "pack"] = "spread"


class OutputSpec(_Section):
    uri: str = "runs"


class TrackingSpec(_Section):
    """Mirrors of the run's numbers; see docs/observability.md. `mlflow_uri`: a server, a database
    (`sqlite:///mlflow.db`), "env" for what MLFLOW_TRACKING_URI says where the run is started from
    (an address with a password belongs there), "" for none."""

    tensorboard: bool = False
    mlflow_uri: str = ""
    mlflow_experiment: str = Field("labelmesh", min_length=1)

    @model_validator(mode="after")
    def _is_address(self) -> TrackingSpec:
        uri = self.mlflow_uri
        if "://" not in uri and uri not in ("", "env", "databricks"):
            raise ValueError(
                f"tracking.mlflow_uri = {uri!r} is no address; use that of a server "
                f"(https://host), a database (sqlite:///mlflow.db: MLflow has given up folders), "
                f"or 'env'"
            )
        return self


def check_run_name(name: str) -> str:
    """The name, which becomes a folder: one part of a path, and no pattern of other names.

    Raises:
        ConfigError: Slashes, wildcards or control characters are in it, or it begins with a dot.
    """
    if not _RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"name = {name[:_LONGEST_NAME]!r}: a run's name becomes a folder; use up to "
            f"{_LONGEST_NAME} letters, digits and any of ' _-.,+=@()', beginning with a letter, "
            "a digit or _, and choose another place by output.uri or --out"
        )
    return name


class RunSpec(_Section):
    name: Annotated[str, AfterValidator(check_run_name)]
    seed: int = 0
    data: DataSpec
    model: ModelSpec = ModelSpec()
    method: SerializeAsAny[Method]
    graph: GraphSpec = GraphSpec()
    refresh: RefreshSpec = RefreshSpec()
    train: TrainSpec
    resources: ResourcesSpec = ResourcesSpec()
    output: OutputSpec = OutputSpec()
    tracking: TrackingSpec = TrackingSpec()

    @model_validator(mode="after")
    def _can_be_written_down(self) -> RunSpec:
        refuse_secrets(self.model_dump(), "")
        return self

    @model_validator(mode="after")
    def _cached_features_can_be_seen(self) -> RunSpec:
        if not self.model.caches:
            return self
        for key, view in (("weak", self.data.weak), ("strong", self.data.strong)):
            if view not in VECTOR_VIEWS:
                raise ValueError(
                    f"data.{key} = {view!r} is a view of images, but model.freeze = true trains on "
                    f"features that are computed once; set data.weak and data.strong to one of "
                    f"{', '.join(VECTOR_VIEWS)}, or model.cache_features = false"
                )
        return self

    @model_validator(mode="after")
    def _steps_need_something_to_train(self) -> RunSpec:
        if not self.method.phases and self.train.warmup_steps:
            raise ValueError(
                f"train.warmup_steps = {self.train.warmup_steps}: the method "
                f"{method_name(self.method)!r} trains nothing; set it to 0"
            )
        return self

    def to_toml(self) -> str:
        """The resolved configuration; `load_config` reads it back to an equal spec."""
        body = self.model_dump(mode="json", exclude_none=True)
        body["method"] = {"name": method_name(self.method), **body["method"]}
        return tomli_w.dumps(body)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one sentence for the user."""


def method_name(method: Method) -> str:
    return type(method).__module__.rsplit(".", 1)[-1]


def shipped_configs() -> dict[str, Path]:
    """Configurations in the package, by name."""
    folder = Path(__file__).parent / "configs"
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def load_config(config: str | Path, overrides: Mapping[str, Any] | None = None) -> RunSpec:
    """Read a shipped configuration (by name) or a file, apply overrides by dotted key, check.

    Raises:
        ConfigError: No such file, unknown key, wrong type or value out of range.
    """
    path = shipped_configs().get(str(config)) or Path(config)
    if not path.is_file():
        near = difflib.get_close_matches(str(config), shipped_configs(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"no configuration {str(config)!r}: neither a file nor one of "
            f"{', '.join(shipped_configs())}{hint}"
        )
    raw = read_toml(path)
    for key, value in (overrides or {}).items():
        _assign(raw, key, value)
    return parse_spec(raw, source=str(config))


def with_overrides(spec: RunSpec, overrides: Mapping[str, Any]) -> RunSpec:
    """The same run with some keys changed, checked anew.

    Raises:
        ConfigError: Unknown key, wrong type or value out of range.
    """
    raw = tomllib.loads(spec.to_toml())
    for key, value in overrides.items():
        _assign(raw, key, value)
    return parse_spec(raw, source=spec.name)


def read_toml(path: Path) -> dict[str, Any]:
    """What a file of a person's says.

    Raises:
        ConfigError: Not TOML, or far larger than anybody writes.
    """
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path}: has {path.stat().st_size} bytes, a configuration at most {_MAX_CONFIG_BYTES}"
        )
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: lists are nested too deep") from None


def absolute_uri(uri: str) -> str:
    """Local paths made absolute: workers have working directories of their own."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def with_absolute_uris(spec: RunSpec) -> RunSpec:
    """The same run, its local paths independent of the working directory."""
    data = {"uri": absolute_uri(spec.data.uri)}
    if spec.data.split_file is not None:
        data["split_file"] = absolute_uri(spec.data.split_file)
    model: dict[str, str] = {}
    if spec.model.weights is not None:
        model["weights"] = absolute_uri(spec.model.weights)
    if spec.model.cache_dir is not None:
        model["cache_dir"] = absolute_uri(spec.model.cache_dir)
    graph: dict[str, str] = {}
    if spec.graph.log_uri not in ("", "auto"):
        graph["log_uri"] = absolute_uri(spec.graph.log_uri)
    kind, colon, folder = spec.model.backbone.partition("hf:")
    if not kind and colon and Path(folder).expanduser().is_dir():
        model["backbone"] = colon + absolute_uri(folder)
    return spec.model_copy(
        update={
            "data": spec.data.model_copy(update=data),
            "model": spec.model.model_copy(update=model),
            "graph": spec.graph.model_copy(update=graph),
            "output": OutputSpec(uri=absolute_uri(spec.output.uri)),
        }
    )


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """`["graph.k=32"]` -> `{"graph.k": 32}`; values are TOML, anything else is a string."""
    out: dict[str, Any] = {}
    for item in items:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {item!r}: expected key=value, for example graph.k=32")
        try:
            out[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            out[key.strip()] = text
    return out


def parse_spec(raw: Mapping[str, Any], *, source: str = "configuration") -> RunSpec:
    """Check a nested mapping as read from TOML.

    Raises:
        ConfigError: One sentence naming the first wrong key, its value and the remedy.
    """
    try:
        refuse_secrets(raw, "")  # first, as other errors show values
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    body = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    section = body.get("method")
    if not isinstance(section, dict) or "name" not in section:
        raise ConfigError(f"{source}: [method] name is missing; known are {method_names()}")
    name = section.pop("name")
    try:
        method_type = find_method(str(name))
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    models: dict[str, type[BaseModel]] = {
        key: info.annotation
        for key, info in RunSpec.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }
    models["method"] = method_type
    _reject_unknown(body, models, source)
    try:
        body["method"] = method_type(**section)
        return RunSpec(**body)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error, method_type)}") from None


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for part in parents:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {key}: {part!r} is a value, not a section")
    raw[leaf] = value


def _reject_unknown(
    body: Mapping[str, Any], models: Mapping[str, type[BaseModel]], source: str
) -> None:
    known = set(RunSpec.model_fields)
    dotted = {f"{s}.{f}" for s, m in models.items() for f in m.model_fields} | known
    dotted.add("method.name")
    given = [
        f"{key}.{leaf}" if isinstance(value, Mapping) else key
        for key, value in body.items()
        for leaf in (value if isinstance(value, Mapping) else [""])
    ]
    for key in given:
        if key not in dotted:
            near = difflib.get_close_matches(key, dotted, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{source}: unknown key {key!r}{hint}")


def _first_problem(error: ValidationError, method_type: type[Method]) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if error.title == method_type.__name__:
        path.insert(0, "method")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    if first["type"] == "missing":
        return f"{'.'.join(path)} is missing"
    return f"{'.'.join(path)} = {first['input']!r}: {message[0].lower()}{message[1:]}"
