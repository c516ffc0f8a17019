"""What the operators of classical models cost (ai.onnx.ml), and those of training; see docs/cost.md."""

from __future__ import annotations

from .. import dims as d
from ..dims import Dim
from .node import Op, Unknown, plus, times
from .work import Row, Work, less, open_, per, rows


def _linear(op: Op, macs: Dim) -> Work:
    if op.attr("post_transform", "NONE") not in ("NONE", b"NONE"):
        raise Unknown("what comes after the product is not counted")
    added = times(*op.x()[:-1], len(op.attr("intercepts", ()) or ()))
    return Work(plus(d.mul(macs, 2), added))


def _normalizer(op: Op, macs: Dim) -> Work:
    # Size, sum or maximum of the row, and the division; squares and a root for L2.
    x, r = op.n_in(), rows(op.x(), -1)
    return Work(d.mul(x, 3) if op.attr("norm", "MAX") == "L2" else less(d.mul(x, 3), r))


_ML = "ai.onnx.ml::"

ROWS: dict[str, Row] = {
    **{
        f"{_ML}{name}": Row("looks up, moves or relabels data: nothing", lambda op, macs: Work())
        for name in (
            "ArrayFeatureExtractor", "CastMap", "CategoryMapper", "DictVectorizer", "FeatureVectorizer", "LabelEncoder",
            "OneHotEncoder", "ZipMap",
        )
    },
    f"{_ML}Binarizer": Row("x: comparisons", lambda op, macs: per(op, op.n_in(), 1)),
    f"{_ML}Imputer": Row("x: comparisons", lambda op, macs: per(op, op.n_in(), 1)),
    f"{_ML}LinearClassifier": Row("2 per MAC; 1 for each intercept; post-transforms are not counted", _linear),
    f"{_ML}LinearRegressor": Row("2 per MAC; 1 for each intercept; post-transforms are not counted", _linear),
    f"{_ML}Normalizer": Row("3 x - r; for L2 3 x", _normalizer),
    f"{_ML}Scaler": Row("2 x", lambda op, macs: Work(d.mul(op.n_in(), 2))),
    **{
        f"{_ML}{name}": open_("which path a tree or kernel takes depends on the data")
        for name in ("SVMClassifier", "SVMRegressor", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
    },
    **{
        f"ai.onnx.preview.training::{name}": open_("training is not counted")
        for name in ("Adagrad", "Adam", "Gradient", "Momentum")
    },
    "ai.onnx.preview::FlexAttention": open_("what it does to scores is a graph of its own"),
}  # fmt: skip
