"""Which class of one model is which class of another."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdistill.models import class_order, reorder_classes


@pytest.mark.parametrize(
    ("theirs", "ours", "order"),
    [
        (("b", "c", "a"), ("a", "b", "c"), (2, 0, 1)),
        (("NEGATIVE", "POSITIVE"), ("positive", "negative"), (1, 0)),
        (("a", "b"), ("a", "b"), (0, 1)),
        (("A", "a"), ("A", "a"), (0, 1)),  # case is all that tells them apart
        (("A", "a"), ("a", "A"), (1, 0)),
        (("A", "a"), ("a", "b"), None),
        (("a", "b"), ("a", "c"), None),
        (("a", "b", "c"), ("a", "b"), None),
    ],
)
def test_order(theirs, ours, order):
    assert class_order(theirs, ours) == order


def test_only_the_classifier_is_reordered():
    params = {"classifier": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.arange(3.0)}, "pooler": np.ones(3)}
    new = reorder_classes(params, (2, 0, 1))
    np.testing.assert_array_equal(new["classifier"]["kernel"], [[2, 0, 1], [5, 3, 4]])
    np.testing.assert_array_equal(new["classifier"]["bias"], [2, 0, 1])
    assert new["pooler"] is params["pooler"]
