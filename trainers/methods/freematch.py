"""FreeMatch (Wang et al., ICLR 2023): FixMatch with thresholds that the predictions set.

Symbols: q predictions of weak views, Q of strong ones; tau "confidence", p~ "prediction" and h~
"histogram", the running statistics of the unlabeled rows; lambda `decay`, w_u `unlabeled_weight`,
w_f `fairness_weight`.

- tau = mean of max q (eq. 5), p~ = mean of q (eq. 6), h~ = shares of argmax q (eq. 10): running
  means that start at 1/C.
- A row with c = argmax q is used where max q >= tau(c) = tau p~(c) / max p~ (eqs. 7-8).
- Fairness compares p~ / h~ with the used rows' mean Q over their shares of argmax Q (eqs. 9, 11).

Departures: the weak rows go first, without gradients, as in `fixmatch.py`. The loss of a
micro-batch sees the running means moved on by its own rows (algorithm 1 moves them on by the
batch); the next step sees them moved on by all micro-batches. The published code starts tau at 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from ..consistency import weak_and_strong
from ..labeling import normalize_rows_to_one, onehot
from ..layers.classifier import LinearClassifier
from ..losses import log_probs, soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase


class FreeMatch(Method):
    """Supervised loss, consistency above self-adaptive thresholds, and fairness (eq. 12)."""

    decay: float = Field(
        0.999, ge=0, lt=1, description="how much of thresholds and frequencies a step keeps"
    )
    unlabeled_weight: float = Field(
        1.0, ge=0, description="weight of the unlabeled rows' loss (w_u)"
    )
    fairness_weight: float = Field(
        0.05, ge=0, description="weight of the self-adaptive fairness (w_f)"
    )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("mixed", "mixed"),)

    @property
    def uses_graph(self) -> bool:
        return False

    def statistics(self, num_classes: int) -> dict[str, Tensor]:
        uniform = torch.full((num_classes,), 1 / num_classes)
        return {"confidence": uniform[0], "prediction": uniform, "histogram": uniform}

    @property
    def statistics_decay(self) -> float:
        return self.decay

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return LinearClassifier(backbone, feature_dim, num_classes)

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """`l_s + w_u l_u + w_f l_f`; without unlabeled rows (warm-up) `l_s`."""
        given, strong, weak_logits = weak_and_strong(net, batch)
        labels = batch.labels[batch.labels >= 0]
        supervised = soft_cross_entropy(given, onehot(labels, given.shape[1]))
        parts = {"supervised": supervised.detach()}
        if weak_logits is None:
            return Loss(supervised, parts, batch.statistics)
        weak = log_probs(weak_logits).exp()
        own = own_statistics(weak)
        now = {name: torch.lerp(v, batch.statistics[name], self.decay) for name, v in own.items()}
        confidence, guess = weak.max(dim=1)
        threshold = class_thresholds(now["confidence"], now["prediction"])
        used = confidence >= threshold[guess]
        unsupervised = soft_cross_entropy(strong, onehot(guess, strong.shape[1]), used.to(weak))
        fairness = self_adaptive_fairness(strong, used, now)
        parts |= {
            "consistency": unsupervised.detach(),
            "fairness": fairness.detach(),
            "passed": used.float().mean(),
            "threshold": now["confidence"],
        }
        total = supervised + self.unlabeled_weight * unsupervised + self.fairness_weight * fairness
        return Loss(total, parts, own)


def own_statistics(weak: Float[Tensor, "b C"]) -> dict[str, Tensor]:
    """Mean confidence, mean prediction and label histogram of weak views' probabilities."""
    confidence, labels = weak.max(dim=1)
    histogram = onehot(labels, weak.shape[1], weak.dtype).mean(dim=0)
    return {"confidence": confidence.mean(), "prediction": weak.mean(0), "histogram": histogram}


def class_thresholds(
    confidence: Float[Tensor, ""], prediction: Float[Tensor, " C"]
) -> Float[Tensor, " C"]:
    """tau(c) = tau p~(c) / max p~ (eqs. 7-8): lower for classes that are predicted less."""
    return confidence * prediction / prediction.max()


def self_adaptive_fairness(
    strong_logits: Float[Tensor, "b C"],
    used: Bool[Tensor, " b"],
    statistics: Mapping[str, Tensor],
) -> Float[Tensor, ""]:
    """l_f = -H(SumNorm(p~ / h~), SumNorm(p- / h-)), H the cross-entropy (eqs. 9, 11).

    p- is the mean prediction of the used rows' strong views and h- the shares of their argmax,
    through which no gradient flows. As in the published code, a class of share 0 has ratio 0, and
    1e-12 is added before the logarithm: a class that no used row has costs a constant.

    Args:
        used: Rows above their threshold; the loss is 0 without any.
        statistics: p~ and h~ as "prediction" and "histogram".
    """
    rows = log_probs(strong_logits).exp()[used]
    if rows.shape[0] == 0:
        return strong_logits.sum() * 0
    shares = onehot(rows.argmax(dim=1), rows.shape[1], rows.dtype).mean(dim=0)
    wanted = _per_share(statistics["prediction"], statistics["histogram"])
    found = _per_share(rows.mean(dim=0), shares)
    return (wanted * (found + 1e-12).log()).sum()


def _per_share(mean: Float[Tensor, " C"], share: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """SumNorm(mean / share)."""
    ratio = torch.where(share > 0, mean / share.clamp(min=1e-12), 0.0)
    return normalize_rows_to_one(ratio[None])[0]
