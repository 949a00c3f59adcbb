import pytest

from ltlearn.utils import ranks


@pytest.fixture
def launched(monkeypatch):
    """Set the variables of a launcher, without connecting anything."""

    def launch(rank, world):
        names = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    # A cluster may set some of the variables for another purpose.
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (ranks.rank(), ranks.world(), ranks.is_first()) == (0, 1, True)
    assert ranks.share("value") == "value"
    assert ranks.by_first(lambda x: x + 1)(1) == 2
    assert ranks.may_report()


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 64])
def test_the_parts_of_a_batch_cover_it_once(launched, n, world):
    rows, sizes = [], []
    for rank in range(world):
        launched(rank, world)
        part = ranks.part_of(n)
        if rank < n:
            rows += range(n)[part]
            sizes.append(part.stop - part.start)
        else:  # it computes the first row, which counts for nothing
            assert part == slice(0, 1)
    assert rows == list(range(n))
    assert max(sizes) - min(sizes) <= 1


def test_the_first_rank_alone_writes(launched, tmp_path):
    from ltlearn.utils.run_folder import Run

    run = Run(tmp_path)
    launched(1, 2)
    run.write_json("a.json", {})
    with run.lock():
        assert not list(tmp_path.iterdir())
    launched(0, 2)
    run.write_json("a.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
