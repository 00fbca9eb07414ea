from __future__ import annotations

import pytest

from neural_polarizer.errors import InputError
from neural_polarizer.lab.bench.cells import cells_of, key_of, networks_of, twins_of
from neural_polarizer.lab.bench.estimate import estimate
from neural_polarizer.lab.bench.grid import read_grid, shipped

MINE = """
name: mine
datasets: [digits]
architectures: [{name: small_resnet, options: {width: 4}}]
attacks: [badnets, badnets_all, {name: blended, options: {alpha: 0.3}, label: strong}]
poisoning_ratios: [0.1, 0.05]
clean: [50, 20]
defences: [none, {name: ft, options: {epochs: 2}}, {name: npd, options: {epochs: 1}}]
seeds: [0, 1]
"""


def write(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return str(path)


def test_a_grid_becomes_cells(tmp_path):
    cells = cells_of(read_grid(write(tmp_path, MINE)))
    measured = [c for c in cells if c.defence["name"] != "none"]
    assert len(measured) == 3 * 2 * 2 * 2 * 2
    # Nothing random happens without a defence, so its seed is that of the network alone.
    assert len(cells) == len(measured) + 3 * 2 * 2 * 2
    assert len(networks_of(cells)) == 3 * 2 * 2  # attacks x ratios x seeds
    assert len(twins_of(cells)) == 2  # one per seed
    by = {(c.labels["attack"], c.labels["defence"], c.clean, c.seed, c.poisoning_ratio): c for c in cells}
    strong = by["strong", "npd", 20, 1, 0.05]
    assert strong.network.attack["options"]["alpha"] == 0.3
    assert strong.network.attack["options"]["poisoning_ratio"] == 0.05
    assert strong.network.hold_back == 50
    assert strong.network.seed == 1
    assert strong.defence["options"]["epochs"] == 1
    assert strong.defence["options"]["lambda_ce"] == 0.4  # every option is in the setting, said or not
    assert strong.layer == "layer3"
    assert by["badnets_all", "ft", 50, 0, 0.1].network.attack["options"]["target"] is None
    assert len({c.key for c in cells}) == len(cells)


def test_the_key_is_the_setting(tmp_path):
    first = cells_of(read_grid(write(tmp_path, MINE)))
    again = cells_of(read_grid(write(tmp_path, MINE.replace("name: mine", "name: renamed"))))
    other = cells_of(read_grid(write(tmp_path, MINE.replace("epochs: 2", "epochs: 3"))))
    assert [c.key for c in first] == [c.key for c in again]
    changed = {c.key for c in first} ^ {c.key for c in other}
    assert len(changed) == 2 * 24  # the fine-tuned ones, before and after
    from_file = cells_of(read_grid(write(tmp_path, MINE)), {"digits": "mine.zip"})
    assert not {c.key for c in first} & {c.key for c in from_file}, "another source is another data set"
    assert key_of({"a": 1, "b": [1.5]}) == key_of({"b": [1.5], "a": 1})


def test_blocks_take_the_rest_from_the_grid_and_share_cells(tmp_path):
    text = MINE + "blocks:\n  - seeds: [0]\n  - seeds: [0, 1]\n    clean: [20]\n"
    cells = cells_of(read_grid(write(tmp_path, text)))
    clean_and_seed = {(c.clean, c.network.seed) for c in cells}
    assert clean_and_seed == {(50, 0), (20, 0), (20, 1)}
    assert len({c.key for c in cells}) == len(cells)
    assert {c.network.hold_back for c in cells} == {50}, "the largest clean set of all blocks"


def test_one_network_for_all_seeds(tmp_path):
    cells = cells_of(read_grid(write(tmp_path, MINE + "network_seed: 7\nhold_back: 60\n")))
    assert {c.network.seed for c in cells} == {7}
    assert {c.seed for c in cells if c.defence["name"] == "ft"} == {0, 1}
    assert len(networks_of(cells)) == 6


@pytest.mark.parametrize("name", shipped())
def test_shipped_grids(name):
    grid = read_grid(name)
    assert grid.name == name
    assert grid.about
    cells = cells_of(grid)
    cost = estimate(list(networks_of(cells).values())[:1], cells[:3])
    assert cost.cpu_hours > cost.gpu_hours > 0


def test_what_the_shipped_grids_promise():
    narrow = cells_of(read_grid("cifar10-narrow"))
    assert len({c.labels["attack"] for c in narrow}) >= 8
    assert {c.clean for c in narrow} == {2500, 250}
    everywhere = [c for c in narrow if c.labels["defence"] != "rnp"]
    assert {(c.labels["attack"], c.clean) for c in narrow if c not in everywhere} == {("badnets", 2500)}
    assert {c.labels["defence"] for c in everywhere} == {
        "none", "ft", "fp", "nad", "anp", "clp", "ibau", "ft_sam", "npd", "r-cnpd", "e-cnpd", "a-cnpd", "auto"
    }  # fmt: skip
    ablations = cells_of(read_grid("ablations"))
    assert {c.labels["attack"] for c in ablations} == {"badnets", "blended", "wanet"}, "development attacks alone"
    paper = cells_of(read_grid("paper-cifar10"))
    assert {c.network.arch for c in paper} == {"preact_resnet18", "vgg19_bn"}
    assert {c.poisoning_ratio for c in paper} == {0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds: [0, 1]", "seeds: []"), "seeds: List should have at least 1 item"),
        (("clean: [50, 20]", "clean: [0]"), "clean.0"),
        (("[0.1, 0.05]", "[1.5]"), "poisoning_ratios.0"),
        (("name: mine", "nam: mine"), "name: Field required"),
        (("name: mine", "name: mine\ncolour: red"), "colour: Extra"),
        (("seeds: [0, 1]", ""), "says nothing of seeds"),
        (("[digits]", "[mnist]"), "datasets: found 'mnist'"),
        (("name: small_resnet", "name: lenet"), "arch: found 'lenet'"),
        (("badnets, badnets_all", "badnet"), "only: found 'badnet'"),
        (("alpha: 0.3", "alfa: 0.3"), "blended takes no 'alfa'"),
        (("[none,", "[hope,"), "defences: found 'hope'"),
        (("{name: ft, options: {epochs: 2}}", "{name: ft, options: {epoch: 2}}"), "epoch"),
        (("{name: npd, options: {epochs: 1}}", "{name: npd, options: {radius: -1}}"), "radius: found -1"),
        (("name: ft, options", "name: npd, options"), "two settings of defence 'npd'"),
        (("name: mine", "name: mine\nhold_back: 30"), "clean: found 50, wanted at most hold_back"),
        (("name: mine", "name: mine\nrecipe: {epoch: 3}"), "recipe: found 'epoch'"),
        (("name: mine", "name: [mine"), "is no YAML"),
        (("name: mine", "name: !!python/object/apply:os.system [echo]"), "is no YAML"),
    ],
)
def test_bad_grids(tmp_path, change, message):
    assert change[0] in MINE
    with pytest.raises(InputError) as error:
        cells_of(read_grid(write(tmp_path, MINE.replace(*change))))
    assert message in str(error.value)


def test_no_such_grid(tmp_path):
    with pytest.raises(InputError, match="shipped grids: .*smoke"):
        read_grid(str(tmp_path / "none.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        read_grid(str(tmp_path / "bytes.yaml"))


def test_a_polarizer_needs_a_layer(tmp_path):
    text = MINE.replace(
        "{name: small_resnet, options: {width: 4}}", "{name: 'transformers:vit', options: {width: 16, depth: 1}}"
    )
    with pytest.raises(InputError, match="layer: found none for npd in transformers:vit"):
        cells_of(read_grid(write(tmp_path, text)))
