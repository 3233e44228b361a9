"""The comparison of searchers by a proxy, on a table of the toy space."""

import numpy as np

from benchmarks import proxy_search
from mbv3_jax.arch import cost
from mbv3_jax.search.network_table import Column, make_network_table
from mbv3_jax.search.presets import preset

TOY = preset("toy")
POINTS = list(TOY.points())


def test_every_searcher_is_judged_by_networks_that_have_not_chosen(monkeypatch):
    halves = []
    original = proxy_search.Proxy

    def spy(table, *, rows, **rest):
        halves.append(set(rows.tolist()))
        return original(table, rows=rows, **rest)

    monkeypatch.setattr(proxy_search, "Proxy", spy)
    monkeypatch.setattr(proxy_search.cost_model, "fit", lambda latency: cost.madds)
    values = np.log([cost.madds(TOY.to_spec(p)) for p in POINTS])
    top1 = Column(kind="accuracy", unit="%", values=tuple((4 * v,) for v in values))
    table = make_network_table(
        name="t", source="s", license="CC0-1.0", space=TOY, networks=POINTS, columns={"top1": top1}
    )
    rows = proxy_search.searched(table, None, seeds=2, steps=6, batch=4)
    for chooser, judge in zip(halves[::2], halves[1::2], strict=True):
        assert not chooser & judge and chooser | judge == set(range(len(POINTS)))
    assert len(rows) == 2 * 2 * len(proxy_search.SEARCHERS)
    for row in rows:
        relative = np.mean([row[k] / row["targets"][k] for k in ("ms", "madds")])
        assert np.isclose(row["reward"], row["judged"] - 0.3 * abs(relative - 1))
        assert abs(row["judged"] - row["believed"]) < 0.1
    text = proxy_search.report(rows)
    assert text.count("| small |") == text.count("| large |") == len(proxy_search.SEARCHERS)
