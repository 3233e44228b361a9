import numpy as np

from mbv3_jax.report.charts import spread_by_step


def test_mean_and_range_of_the_seeds_at_each_step():
    steps, mean, low, high = spread_by_step([20, 10, 20, 10, 30], np.array([4.0, 1, 2, 3, 5]))
    np.testing.assert_array_equal(steps, [10, 20, 30])
    np.testing.assert_array_equal(mean, [2, 3, 5])
    np.testing.assert_array_equal(low, [1, 2, 5])
    np.testing.assert_array_equal(high, [3, 4, 5])
