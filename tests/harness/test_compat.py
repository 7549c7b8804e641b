"""One test for each private or internal name of Lightning and torch: it fails when the name moves or changes."""

from lightning_robust.harness import compat


def test_takes_batch_index():
    class Host:
        def alone(self, batch): ...
        def pair(self, batch, i): ...
        def anything(self, *args): ...

    host = Host()
    assert [compat.takes_batch_index(step) for step in (host.alone, host.pair, host.anything)] == [False, True, True]
