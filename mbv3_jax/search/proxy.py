"""A proxy for training and measuring networks, fitted to a table of others.

`Proxy` predicts each column of a `NetworkTable`; `judge` finds out how well, on networks that are
held out.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from mbv3_jax.arch.spec import NetSpec
from mbv3_jax.core.checks import check_whole, choose
from mbv3_jax.search.network_table import NetworkTable
from mbv3_jax.search.predictor import Predictor
from mbv3_jax.search.space import Point

# Half of the measurements should lie within the first number of deviations, 90% in the second.
_HALF, _MOST = stats.norm.ppf(0.75), stats.norm.ppf(0.95)


class Proxy:
    """Predicts the accuracy and every cost of networks as a table has them.

    A column is fitted when it is first asked for, which takes some seconds.

    Args:
      table: What to learn from.
      rows: Which of its networks to learn from, counted from 0; default all.
      accuracy: The column that `evaluate` predicts; default the first accuracy.
      seed: Seed of the predictors.

    Raises:
      ValueError: The table has no accuracy of this name.
    """

    def __init__(
        self,
        table: NetworkTable,
        *,
        rows: Sequence[int] | np.ndarray | None = None,
        accuracy: str | None = None,
        seed: int = 0,
    ):
        self.table, self.seed = table, seed
        if accuracy is not None:
            choose("accuracy", accuracy, _names(table, "accuracy"))
        self._accuracy = accuracy
        self.rows = np.arange(len(table.networks)) if rows is None else np.asarray(rows)
        self._predictors: dict[str, Predictor] = {}

    def predictor(self, column: str) -> Predictor:
        """Returns the predictor of a column, in the units of `Column.means`.

        Raises:
          ValueError: The table has no such column, or fewer than two of the rows have a value.
        """
        choose("column", column, self.table.columns)
        if column not in self._predictors:
            measured = self.table.columns[column]
            values = measured.means()
            rows = [int(i) for i in self.rows if np.isfinite(values[i])]
            if len(rows) < 2:
                raise ValueError(f"{column}: got {len(rows)} networks with a value, expected 2")
            self._predictors[column] = Predictor(
                self.table.space, relative=measured.kind == "cost", seed=self.seed
            ).fit(
                [self.table.networks[i] for i in rows],
                values[rows],
                counts=[len(measured.values[i]) for i in rows],
            )
        return self._predictors[column]

    @property
    def accuracy(self) -> str:
        """The column that `evaluate` predicts.

        Raises:
          ValueError: The table has no accuracy.
        """
        if self._accuracy is not None:
            return self._accuracy
        for name in _names(self.table, "accuracy"):
            return name
        raise ValueError(f"{self.table.name} has no accuracy, only {', '.join(self.table.columns)}")

    def evaluate(self, networks: Sequence[Point | NetSpec]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the accuracies [N], as fractions, of N networks, and their deviations [N].

        Raises:
          ValueError: The table has no accuracy.
        """
        return self.predictor(self.accuracy).predict(networks)

    def expect(self, networks: Sequence[Point | NetSpec]) -> np.ndarray:
        """Returns the accuracies [N] of `evaluate`, quicker, without their deviations.

        Raises:
          ValueError: The table has no accuracy.
        """
        return self.predictor(self.accuracy).expect(networks)

    @property
    def costs(self) -> list[str]:
        """The columns of the table that `cost` takes."""
        return _names(self.table, "cost")

    def cost(self, column: str) -> "PredictedCost":
        """Returns a function from a network to its predicted cost; less is better.

        Raises:
          ValueError: The table has no such cost.
        """
        return PredictedCost(self.predictor(choose("cost", column, self.costs)))


@dataclasses.dataclass(frozen=True)
class PredictedCost:
    """Predicts the cost of a network; its `predictor` does so for many at once."""

    predictor: Predictor

    def __call__(self, network: Point | NetSpec) -> float:
        return self.predictor.expect([network]).item()


def _names(table: NetworkTable, kind: str) -> list[str]:
    return [name for name, column in table.columns.items() if column.kind == kind]


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a column is predicted for networks that were held out.

    Each figure is a tuple of one number for each split of the table.

    Attributes:
      column: Its name.
      kendall: The rank correlation of prediction and measurement.
      error: The mean absolute error: in points for an accuracy, in percent of the measurement for a
        cost.
      within_half, within_most: The fractions of measurements within the intervals that should hold
        50% and 90% of them.
    """

    column: str
    kendall: tuple[float, ...]
    error: tuple[float, ...]
    within_half: tuple[float, ...]
    within_most: tuple[float, ...]


def judge(
    table: NetworkTable,
    *,
    train: int,
    held_out: int,
    seeds: int,
    columns: Sequence[str] | None = None,
    note: Callable[[Score], None] = lambda _: None,
) -> list[Score]:
    """Predicts networks that are held out, for several random splits of a table.

    Args:
      table: The table. Its networks are all different, so that no split shares one.
      train: How many networks to learn from.
      held_out: How many others to predict.
      seeds: The number of splits.
      columns: Which columns; default all.
      note: Called with each score.

    Raises:
      ValueError: The table has too few networks, or no such column.
    """
    check_whole("train", train, 2)
    check_whole("held_out", held_out, 2)
    check_whole("seeds", seeds, 1)
    if train + held_out > len(table.networks):
        raise ValueError(
            f"got {train} networks to learn from and {held_out} to predict, but {table.name} has "
            f"only {len(table.networks)}"
        )
    splits = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(table.networks))
        proxy = Proxy(table, rows=order[:train], seed=seed)
        splits.append((proxy, order[train : train + held_out]))
    scores = []
    for column in columns or table.columns:
        figures = np.transpose([_score(proxy, column, rows) for proxy, rows in splits]).tolist()
        scores.append(Score(column, *map(tuple, figures)))
        note(scores[-1])
    return scores


def _score(proxy: Proxy, column: str, rows: np.ndarray) -> tuple[float, float, float, float]:
    measured = proxy.table.columns[column]
    values = measured.means()
    rows = rows[np.isfinite(values[rows])]
    mean, deviation = proxy.predictor(column).predict([proxy.table.networks[i] for i in rows])
    true = values[rows]
    miss = np.abs(mean - true)
    # A value that is a mean of several scatters less, but hardly any is.
    distance = miss / deviation
    return (
        float(stats.kendalltau(mean, true)[0]),
        100 * float(np.mean(miss if measured.kind == "accuracy" else miss / true)),
        float(np.mean(distance < _HALF)),
        float(np.mean(distance < _MOST)),
    )
