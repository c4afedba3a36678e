"""The correlation of a proxy with what it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.search.bench.proxy import rank_correlation


def test_rank_correlation_is_spearman_s_with_an_interval_around_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    value, low, high = rank_correlation(x.tolist(), (x + rng.normal(size=40)).tolist())
    assert low < value < high
    assert rank_correlation(x.tolist(), np.exp(x).tolist()) == (
        pytest.approx(1.0),
        pytest.approx(1.0),
        pytest.approx(1.0),
    )
