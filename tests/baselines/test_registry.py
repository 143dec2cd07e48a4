"""Names of rows: all different, near ones suggested, groups, other weights."""

import shlex

import pytest

from baselines.registry import all_rows, choose, group_name


def test_rows_have_names_that_can_be_typed_and_facts_that_can_be_read():
    for name, row in all_rows().items():
        assert row.name == name and name == name.lower() and " " not in name and "@" not in name
        assert row.title and row.library
        assert all(0 <= value <= 1 for value in row.paper.values())
        assert bool(row.paper) <= (row.table is not None)


def test_the_papers_convolutional_networks_are_there():
    found = {row.paper["top_1"] for row in choose(["convnets"])}
    assert found == {0.528, 0.569, 0.485, 0.538, 0.609, 0.404}


def test_a_row_is_chosen_once():
    names = [row.name for row in choose(["resnet-18", "convnets", "resnet-18"])]
    assert names.count("resnet-18") == 1 and len(names) == 7
    assert [row.name for row in choose(["all"])] == list(all_rows())


def test_a_name_that_is_not_there_brings_the_nearest():
    with pytest.raises(ValueError, match=r"no row or group 'resnet18'.*resnet-18"):
        choose(["resnet18"])


def test_a_group_has_a_name_of_its_own_that_can_be_typed_in_a_shell():
    groups = {row.group for row in all_rows().values()}
    names = {group_name(group) for group in groups}
    assert len(names) == len(groups) and not names & {*all_rows(), "all"}
    assert all(shlex.quote(name) == name for name in names)
    assert {row.name for row in choose(["self-supervised"])} > {"simclr", "byol"}


def test_other_weights_make_another_row():
    (row,) = choose(["encoder-probe"], "/somewhere/eyes")
    assert (row.name, row.pretrained) == ("encoder-probe@eyes", "/somewhere/eyes")
    assert "eyes" in row.title


def test_weights_are_refused_where_a_row_starts_from_random_ones():
    with pytest.raises(ValueError, match="small-cnn do"):
        choose(["encoder-probe", "small-cnn"], "eyes")
