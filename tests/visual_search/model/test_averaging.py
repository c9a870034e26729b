from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from visual_search.model.averaging import ExponentialAverage, WeightSoup


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def nudge(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_average_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average = ExponentialAverage(module, 0.2)
    module.weight.data.fill_(1.0)
    average.update()  # decay 1/10
    assert float(average.averages[0]) == pytest.approx(0.9)
    module.weight.data.fill_(2.0)
    average.update()  # decay 2/11
    assert float(average.averages[0]) == pytest.approx(0.9 * 2 / 11 + 2.0 * 9 / 11)
    module.weight.data.fill_(0.0)
    before = float(average.averages[0])
    average.update()  # decay min(0.2, 3/12)
    assert float(average.averages[0]) == pytest.approx(0.2 * before)


def test_averages_that_an_earlier_version_kept_by_name_go_on() -> None:
    module = model()
    average = ExponentialAverage(module, 0.9)
    by_name = {name: torch.rand_like(value) for name, value in module.named_parameters()}
    average.load_state_dict({"updates": 3, "averages": by_name})
    assert average.updates == 3
    assert all(map(torch.equal, average.averages, by_name.values()))


def test_swapped_gives_the_averages_and_back_even_after_an_error() -> None:
    module = model()
    average = ExponentialAverage(module, 0.9)
    nudge(module)
    average.update()
    module[1].get_buffer("running_mean").fill_(7.0)
    own = copied(module)
    held = [value.clone() for value in average.averages]

    def stopped() -> None:
        with average.swapped():
            assert all(map(torch.equal, module.parameters(), held))
            assert (module[1].get_buffer("running_mean") == 7.0).all()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())
    assert all(map(torch.equal, average.averages, held))


def test_the_soup_is_the_mean_of_the_last_snapshots(tmp_path: Path) -> None:
    module = model()
    soup = WeightSoup(3, tmp_path)
    taken = []
    for number in range(5):
        nudge(module)
        module[1].get_buffer("num_batches_tracked").fill_(number)
        soup.add(module.state_dict())
        taken.append(copied(module))
        assert len(soup) == min(number + 1, 3)
    average = soup.average()
    assert average.keys() == module.state_dict().keys()
    for name, value in average.items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == 4
        else:
            expected = (taken[2][name] + taken[3][name] + taken[4][name]) / 3
            torch.testing.assert_close(value, expected)
            assert value.dtype == taken[0][name].dtype
    module.load_state_dict(average)


def test_a_continued_soup_is_the_same(tmp_path: Path) -> None:
    def snapshot(number: int) -> dict[str, Tensor]:
        return {"weight": torch.full((2,), float(number))}

    soup = WeightSoup(2, tmp_path)
    for number in range(4):
        soup.add(snapshot(number))
    state = soup.state_dict()  # of a checkpoint after snapshot 3
    for number in (4, 5, 6):  # and the process is killed before the next checkpoint
        soup.add(snapshot(100 * number))
    continued = WeightSoup(2, tmp_path)
    continued.load_state_dict(state)
    assert len(continued) == 2
    assert continued.average()["weight"].tolist() == [2.5, 2.5]
    continued.add(snapshot(4))
    assert continued.average()["weight"].tolist() == [3.5, 3.5]


def test_files_stay_until_two_states_do_not_need_them(tmp_path: Path) -> None:
    soup = WeightSoup(2, tmp_path)

    def kept() -> list[int]:
        return sorted(int(path.stem[9:]) for path in tmp_path.glob("snapshot-*.safetensors"))

    for _ in range(4):
        soup.add({"weight": torch.ones(1)})
    soup.state_dict()  # needs 2 and 3
    assert kept() == [0, 1, 2, 3]
    for _ in range(4):
        soup.add({"weight": torch.ones(1)})
    soup.state_dict()  # needs 6 and 7; were its writing cut short, 2 and 3 would be needed
    assert kept() == [2, 3, 4, 5, 6, 7]
    soup.state_dict()
    assert kept() == [6, 7]
