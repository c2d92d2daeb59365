"""Options of the source `url` in params.yaml."""

import json
from pathlib import Path

import pytest

from diffusion_core.config.params import load_settings
from diffusion_core.errors import UserError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"url": "http://example.com/a.zip"},
            "'http://example.com/a.zip' is not the address of a file: write https://",
        ),
        ({"url": "ftp://example.com/a.zip"}, "'ftp://example.com/a.zip' is not the address of a file: write https://"),
        ({"url": "https:///a.zip"}, "'https:///a.zip' is not the address of a file: write https://"),
        ({"url": "https://host/a b.zip"}, "'https://host/a b.zip' is not the address of a file: write https://"),
        (
            {"url": "https://me:letters@host/a.zip"},
            "'https://host/a.zip' has a user or password before it: leave them out",
        ),
        ({"sha256": "abc"}, "'abc' is not a sha256: write its 64 hexadecimal digits, as sha256sum prints them"),
        ({"sha256": "g" * 64}, "is not a sha256: write its 64 hexadecimal digits"),
        ({"url": "a.zip"}, "ingest.source.url: 'a.zip' is not the address of a file: write https://"),
        ({"url": 1}, "ingest.source.url is 1: it must be a valid string"),
        (
            {"format": "rar"},
            "ingest.source.format is 'rar': did you mean tar\\? it must be one of zip, tar, webdataset",
        ),
        ({"sha": "1"}, "unknown key ingest.source.sha: did you mean sha256"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object], sentence: str) -> None:
    chosen = {"kind": "url", "url": "https://host/a.zip", "sha256": "0" * 64, **options}
    lines = "".join(f"    {key}: {json.dumps(value)}\n" for key, value in chosen.items())
    content = Path("params.yaml").read_text(encoding="utf-8").replace("    kind: digits", f"{lines}    #", 1)
    (tmp_path / "params.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=sentence) as error:
        load_settings(tmp_path / "params.yaml")
    assert "letters" not in str(error.value)
