"""Files of checkpoints: what is written and deleted before what; which one is taken."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from adamx.interop import CheckpointError, _manifest, restore, save, steps, verify


def test_all_is_on_the_disk_before_the_manifest_has_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "1"
    for name in ("a", "deep/b"):
        path = folder / "arrays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    events, flush, replace = [], _manifest._flush, os.replace

    def flushed(path):
        events.append(path.name)
        flush(path)

    def renamed(old, new):
        events.append("renamed")
        replace(old, new)

    written = []
    monkeypatch.setattr(_manifest, "_flush", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "fsync", written.append)
    _manifest.write_manifest(folder, 1, {})
    at = events.index("renamed")
    assert sorted(events[:at]) == ["a", "b", "manifest.json.part"]
    assert events[at - 1] == "manifest.json.part"
    assert events[at + 1 :] == ["1", "run"]
    assert len(written) == 5
    assert not (folder / "manifest.json.part").exists()
    assert verify(tmp_path / "run", 1)["step"] == 1


@pytest.mark.parametrize("change", ["step", "format"])
def test_a_manifest_that_says_something_else_is_refused(tmp_path, change):
    """Still JSON, and only one number of it another."""
    path = save(tmp_path, 1, {"w": np.ones(3)}) / "manifest.json"
    sealed = json.loads(path.read_text())
    sealed["body"][change] += 1
    path.write_text(json.dumps(sealed))
    with pytest.raises(CheckpointError, match=r"manifest\.json' is damaged.*SHA-256"):
        restore(tmp_path)


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    known = _manifest.FORMAT
    monkeypatch.setattr(_manifest, "FORMAT", known + 1)
    save(tmp_path, 1, {"w": np.ones(3)})
    monkeypatch.undo()
    message = rf"has format {known + 1}, .* reads up to {known}; install a later one"
    with pytest.raises(ValueError, match=message):
        restore(tmp_path)


def test_files_are_read_to_their_end(tmp_path):
    """A flipped bit behind the first chunk."""
    path = tmp_path / "file"
    data = bytearray(_manifest._CHUNK + 1)
    path.write_bytes(data)
    before = _manifest._digest(path)
    data[-1] ^= 1
    path.write_bytes(data)
    assert _manifest._digest(path) != before


def test_steps_are_in_the_order_of_numbers(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, step, {"w": np.full(1, step)}, keep=2)
    assert steps(tmp_path) == [10, 100]
    assert restore(tmp_path)["w"].tolist() == [100]


def test_a_delete_that_was_cut_short_leaves_none(tmp_path, monkeypatch):
    """Whatever is gone, the manifest went first."""
    save(tmp_path, 1, {"w": np.ones(3)})

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, {"w": np.zeros(3)}, keep=1)
    assert steps(tmp_path) == [2]
    assert restore(tmp_path)["w"].tolist() == [0, 0, 0]


def test_an_earlier_step_falls_back_on_none_that_is_later(tmp_path):
    folders = [save(tmp_path, step, {"w": np.full(3, step)}) for step in (1, 2, 3)]
    assert restore(tmp_path, step=2)["w"].tolist() == [2, 2, 2]
    for path in filter(pathlib.Path.is_file, folders[1].rglob("arrays/*")):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="one before"):
        got = restore(tmp_path, step=2, fallback=True)
    assert got["w"].tolist() == [1, 1, 1]
