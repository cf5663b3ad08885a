"""Labels for inputs that a finished run has never seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from ..graph_store.local_store import LocalStore
from ..graph_store.store import GraphStore
from .config import RunSpec
from .evaluate import batch_logits, predict_batch
from .method import Base
from .networks import build_parts, plain_view
from .prepare import load_config_text
from .run_dir import BACKBONE_ABOUT, BACKBONE_WEIGHTS, RunDir


class Predictor:
    """A finished run's network, with its store where the method looks at neighbours.

    Attributes:
        classes: Names of the classes, in the order of the columns of `predict`.
        shape: Of one input: (c, h, w) or (D,).
        device: Where the network lies.
    """

    def __init__(self, run: RunDir, device: str | None = None) -> None:
        """Load a run.

        Raises:
            ValueError: The folder holds no finished run.
        """
        if not run.exists("model.safetensors"):
            raise ValueError(f"{run.uri} holds no finished run (model.safetensors is missing)")
        self.spec: RunSpec = load_config_text(run.read_text("config.toml"))
        about = run.read_json("model.json")
        self.classes: list[str] = about["classes"]
        self.shape: tuple[int, ...] = tuple(about["shape"])
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        state = safetensors.torch.load(run.read_bytes("model.safetensors"))
        stored = run.read_json(BACKBONE_ABOUT) if run.exists(BACKBONE_ABOUT) else {}
        parts = build_parts(
            self.spec, self.spec.method, self.shape, len(self.classes), stored=stored
        )
        network = parts.network
        if "base_features" in state:
            base = Base(state["base_features"], state["base_labels"], len(self.classes))
            network = self.spec.method.predictor(network, base)
        network.load_state_dict(state)
        if parts.encoder is not None:
            encoder = safetensors.torch.load(run.read_bytes(BACKBONE_WEIGHTS))
            parts.encoder.load_state_dict(encoder)
        self._network = parts.joined(network).to(self.device).eval().requires_grad_(False)
        self._hops = self.spec.method.predict_hops
        self._store: GraphStore | None = None
        if self._hops:
            self._store = LocalStore.restore(run.child("store"), device=str(self.device))
        self._plain = plain_view(self.shape)

    def predict(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """Class probabilities, `m C` float32, of the kind (numpy or torch) that came in.

        Args:
            inputs: uint8 images `m c h w` or `m h w c`, or float embeddings `m D`.
            batch_size: Inputs per forward pass, `train.extract_batch_size` unless told. A network
                that predicts from base rows sees these inputs together, others one by one.

        Raises:
            ValueError: Wrong shape or dtype.
        """
        tensor = self._check(torch.as_tensor(inputs))
        parts = [
            predict_batch(
                self._network,
                self.normalize(part),
                store=self._store,
                hops=self._hops,
                k=self.spec.graph.k,
            )
            for part in torch.split(tensor, batch_size or self.spec.train.extract_batch_size)
        ]
        probs: Float[Tensor, "m C"] = (
            torch.cat(parts) if parts else torch.empty(0, len(self.classes))
        )
        return probs if isinstance(inputs, Tensor) else np.asarray(probs)

    def normalize(self, inputs: Tensor) -> Tensor:
        """Inputs as the network takes them: images in -1..1, on the device."""
        return self._plain(inputs.to(self.device), torch.Generator())

    def logits(self, inputs: Tensor) -> Float[Tensor, "m C"]:
        """Logits of normalised inputs, in one pass; gradients reach the inputs."""
        return batch_logits(
            self._network, inputs, store=self._store, hops=self._hops, k=self.spec.graph.k
        )

    def _check(self, inputs: Tensor) -> Tensor:
        shape = tuple(inputs.shape[1:])
        is_image = len(self.shape) == 3
        if is_image and shape != self.shape and len(shape) == 3:
            channels_last = (shape[2], shape[0], shape[1])
            if channels_last == self.shape:
                inputs, shape = inputs.permute(0, 3, 1, 2), channels_last
        if is_image and len(shape) == 2 and (1, *shape) == self.shape:
            inputs, shape = inputs[:, None], (1, *shape)
        if shape != self.shape:
            raise ValueError(
                f"inputs of shape {shape} do not fit this run, which was trained on {self.shape}"
            )
        if is_image and inputs.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 (0..255), not {inputs.dtype}; multiply by 255 and round"
            )
        return inputs if is_image else inputs.float()
