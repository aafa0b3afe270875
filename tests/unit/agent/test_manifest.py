"""What the agent says of a directory's files, in as many lines as the server takes."""

from __future__ import annotations

import json

from boxwood.engine.agent import files


def test_a_manifest_ends_where_the_server_takes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_on_disk", lambda directory: None)
    for number in range(5):
        (tmp_path / f"f{number}").write_bytes(b"x")
    lines = []
    assert files.manifest(str(tmp_path), 100, lines.append) == (str(tmp_path), False)
    assert [json.loads(line)["path"] for line in lines] == ["f0", "f1", "f2", "f3", "f4"]
    monkeypatch.setattr(files, "MANIFEST_LIMIT", sum(map(len, lines[:3])))
    fewer = []
    assert files.manifest(str(tmp_path), 100, fewer.append) == (str(tmp_path), True)
    assert fewer == lines[:3]
