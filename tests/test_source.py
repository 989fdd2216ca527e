"""What a library holds of a source: facts in JSON types, files by their digest."""

import json

import pytest
import torch

from pge_lightning.errors import ArtifactError
from pge_lightning.source import FileEntry, Source, SourceFacts, SourceFolder, digest_of, from_json, to_json

FACTS = SourceFacts("encoder", 10, 1797, "val_acc", 0.97, 12.5, 3.25, "2025-01-01T00:00:00+00:00", {"seed": 1})
FOLDER = SourceFolder(None, "nowhere")
SOURCE = Source("digits", FACTS, FileEntry("encoder-0123456789ab.safetensors", "0123456789ab" + "0" * 52), (), FOLDER)


def test_a_source_comes_back_from_its_json():
    assert from_json(to_json(SOURCE), "digits", FOLDER) == SOURCE


@pytest.mark.parametrize("sha256", ["0123456789ab", "f" * 64])
def test_a_digest_must_be_whole_and_that_of_the_file(sha256):
    content = json.loads(to_json(SOURCE))
    content["weights"]["sha256"] = sha256
    with pytest.raises(ArtifactError, match="Expected the facts and files of a source"):
        from_json(json.dumps(content).encode(), "digits", FOLDER)


@pytest.mark.parametrize(
    "name", ["../encoder-0123456789ab.safetensors", "encoder.safetensors", "encoder-0123456789ab.pt"]
)
def test_only_names_of_a_librarys_files_have_a_digest(name):
    assert digest_of("encoder-0123456789ab.safetensors") == "0123456789ab"
    with pytest.raises(ArtifactError, match="Expected the name of a library's file"):
        digest_of(name)


def test_facts_that_have_no_json_form_are_refused_at_once():
    with pytest.raises(ValueError, match="Expected facts in JSON types"):
        SourceFacts("encoder", 2, 3, None, None, 0.0, 0.0, "now", {"tensor": torch.ones(1)})
    facts = SourceFacts("encoder", None, 3, None, float("nan"), 0.0, 0.0, "now", {"shape": (1, 2), "by": {3: None}})
    assert facts.extra == {"shape": [1, 2], "by": {"3": None}}
