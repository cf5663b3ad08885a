"""What a finished run says about new inputs, as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ..trainers.predict import Predictor
from ..trainers.run_dir import RunDir


def predict_table(run: str, keys: Sequence[str], inputs: np.ndarray) -> pa.Table:
    """One row per input: `key`, `label`, `class` (its name), `confidence` (its probability).

    Raises:
        ValueError: `run` holds no finished run, or the inputs do not fit it.
    """
    predictor = Predictor(RunDir(run))
    probs = np.asarray(predictor.predict(inputs))
    label = probs.argmax(axis=1)
    return pa.table(
        {
            "key": pa.array(list(keys), pa.string()),
            "label": pa.array(label, pa.int64()),
            "class": pa.array([predictor.classes[c] for c in label], pa.string()),
            "confidence": pa.array(probs.max(axis=1), pa.float32()),
        }
    )
