"""Paths and whole files."""

from gsjax import files


def test_buckets_stay_what_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert files.absolute("gs://bucket/run").as_posix() == "gs://bucket/run"
    assert files.absolute("run").as_posix() == str(tmp_path / "run")
