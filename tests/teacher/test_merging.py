"""Shards of a job array, apart and merged."""

import shutil

import pytest
from support.teacher_helpers import arguments, load, make_images, replies

from mvaema.commands.teach import ask_command, main
from mvaema.teacher.run import TeacherRun


@pytest.mark.slow
def test_shards_merge_into_what_one_run_gives(server, tmp_path):
    images = make_images(tmp_path / "images", 12)
    ask_command(arguments(images, tmp_path / "whole", server.url))
    whole = load(tmp_path / "whole" / "dataset", tmp_path / "a")
    asked = len(server.exchanges)
    parts = []
    for i in range(3):
        parts.append(tmp_path / f"part-{i}")
        ask_command(arguments(images, parts[-1], server.url, shard=f"{i}/3"))
    assert len(server.exchanges) == asked + 120
    command = ["merge", "--output_dir", str(tmp_path / "all"), "--parts", *map(str, parts)]
    for _ in range(2):  # a second merge changes nothing
        assert main(command) == 0
        assert len(replies(tmp_path / "all")) == 120
    merged = load(tmp_path / "all" / "dataset", tmp_path / "b")

    def content(rows):
        columns = ["image_id", "category", "group", "qa"]
        return sorted((row["image_id"], str(row)) for row in rows.select_columns(columns))

    assert content(merged) == content(whole)
    shutil.rmtree(parts[0])
    ask_command(arguments(images, tmp_path / "all", server.url))
    assert len(server.exchanges) == asked + 120, "the merged folder knows all answers"


def test_what_is_absent_moved_or_missing_in_a_part(server, tmp_path):
    images = make_images(tmp_path / "images", 6)
    parts = [tmp_path / "part-0", tmp_path / "part-1"]
    command = ["merge", "--output_dir", str(tmp_path / "all"), "--parts", *map(str, parts)]

    def merged(name):
        for i, part in enumerate(parts):
            ask_command(arguments(images, part, server.url, shard=f"{i}/2", questions=["basics"]))
        assert main(command) == 0
        return load(tmp_path / "all" / "dataset", tmp_path / name)

    assert merged("a")["category"] == ["Nanowires"] * 6
    files = sorted((images / "Nanowires").iterdir())
    kept = files[0].read_bytes()
    files[0].unlink()
    (images / "Tips").mkdir()
    for file in files[1:4]:
        file.rename(images / "Tips" / file.name)
    assert sorted(merged("b")["category"]) == ["Nanowires"] * 2 + ["Tips"] * 3
    files[0].write_bytes(kept)
    assert sorted(merged("c")["category"]) == ["Nanowires"] * 3 + ["Tips"] * 3
    for file in [*tmp_path.glob("part-*/images/*/*.png"), *tmp_path.glob("all/images/*/*.png")]:
        if file.name.startswith(tuple("01234567")):
            file.unlink()
    assert main(command) == 0
    left = load(tmp_path / "all" / "dataset", tmp_path / "d")
    assert 0 < len(left) < 6
    asked = len(server.exchanges)
    ask_command(arguments(images, tmp_path / "all", server.url, questions=["basics"]))
    assert len(load(tmp_path / "all" / "dataset", tmp_path / "e")) == 6
    assert len(server.exchanges) == asked


def test_shards_may_share_a_folder(server, tmp_path):
    images, output = make_images(tmp_path / "images", 8), tmp_path / "out"
    for i in range(2):
        assert ask_command(arguments(images, output, server.url, shard=f"{i}/2")) == 0
    assert len(load(output / "dataset", tmp_path)) == 8
    with pytest.raises(RuntimeError, match="another division"):
        TeacherRun(arguments(images, output, server.url, shard="0/3"))
