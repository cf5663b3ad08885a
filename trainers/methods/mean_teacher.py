"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017): agree with the average of oneself.

`CE(student(x'), y)` on the labeled rows and `w(t) |softmax(student(x')) - softmax(teacher(x''))|^2`
on all, x' and x'' two views of the same row, the teacher an exponential moving average of the
student (`train.ema_decay`), `w(t) = w exp(-5 (1 - t/T)^2)` until epoch T. Means are over rows.

Departures: the teacher normalises by averaged batch-norm statistics (Cai et al., "EMAN", CVPR
2021), the paper's by those of its batch; the paper's second classifier is left out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from ..consistency import teacher_consistency
from ..labeling import onehot
from ..layers.classifier import LinearClassifier
from ..losses import soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase


class MeanTeacher(Method):
    """Supervised loss plus consistency with the averaged network."""

    consistency: float = Field(
        10.0, ge=0, description="weight of the consistency cost after its ramp (w)"
    )
    rampup_epochs: float = Field(
        5.0, ge=0, description="epochs until the weight is full (T); 0 = from the start"
    )
    student_view: Literal["weak", "strong"] = Field(
        "weak", description="augmentation of what the student sees; the teacher's is weak"
    )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("mixed", "mixed"),)

    @property
    def uses_graph(self) -> bool:
        return False

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return LinearClassifier(backbone, feature_dim, num_classes)

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """Cross-entropy of the labeled rows plus consistency of all; in the warm-up, too."""
        labeled = batch.labels >= 0
        logits = net(batch.view(self.student_view)).logits
        supervised = soft_cross_entropy(
            logits[labeled], onehot(batch.labels[labeled], logits.shape[1])
        )
        agreement, parts = teacher_consistency(
            logits, batch, weight=self.consistency, rampup_epochs=self.rampup_epochs
        )
        return Loss(supervised + agreement, {"supervised": supervised.detach(), **parts})
