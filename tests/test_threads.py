"""How many threads torch is told to use."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mtattn.threads import use_one_thread, use_threads


@pytest.mark.parametrize(("count", "told"), [(0, []), (3, []), (1, [1])], ids=["as found", "as it is", "another"])
def test_torch_is_told_a_number_only_where_that_changes_it(
    count: int, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", said.append)

    use_threads(count)

    assert said == told


def test_one_thread_can_compute_alone_while_others_keep_theirs() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=use_one_thread) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == before
