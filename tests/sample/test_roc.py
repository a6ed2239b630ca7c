import pytest

from caption_assets.sample.roc import roc_auc

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("true", "false", "auc"),
    [([0.9, 0.8], [0.1], 1.0), ([0.1], [0.9, 0.8], 0.0), ([0.5], [0.5], 0.5), ([0.9, 0.3], [0.5, 0.3], 0.625)],
)
def test_roc_auc_counts_pairs_in_order_and_half_of_the_equal_ones(
    true: list[float], false: list[float], auc: float
) -> None:
    assert roc_auc(true, false) == auc
