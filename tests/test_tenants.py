"""Who has which share, and what is said about a file that does not."""

from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.tenants import TenantEntry, Tenants


def load(folder: Path, content: str) -> Tenants:
    (folder / "tenants.toml").write_text(content)
    return Tenants.load(folder)


def test_without_a_file_every_tenant_has_the_same_share_and_no_bound(tmp_path: Path) -> None:
    tenants = Tenants.load(tmp_path)
    assert tenants.named == {}
    assert tenants.entry("acme") == tenants.default == TenantEntry(weight=1.0, concurrency=None)


@pytest.mark.parametrize("content", ["", "[default]", "[tenants]"])
def test_an_empty_file_is_as_none(tmp_path: Path, content: str) -> None:
    tenants = load(tmp_path, content)
    assert (tenants.entry("acme"), tenants.named) == (TenantEntry(), {})


def test_a_tenant_has_its_own_table_and_all_others_the_default(tmp_path: Path) -> None:
    tenants = load(
        tmp_path, "[default]\nweight = 0.5\nconcurrency = 4\n[tenants.acme]\nweight = 3\n[tenants.'a.b_c-1']\n"
    )
    assert tenants.entry("acme") == TenantEntry(weight=3.0, concurrency=None)
    assert tenants.entry("a.b_c-1") == TenantEntry(weight=1.0, concurrency=None)
    assert tenants.entry("globex") == TenantEntry(weight=0.5, concurrency=4)
    assert sorted(tenants.named) == ["a.b_c-1", "acme"]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("[default]\nweight = 0\n", "key 'default.weight'"),
        ("[default]\nweight = -1\n", "key 'default.weight'"),
        ("[default]\nweight = nan\n", "key 'default.weight'"),
        ("[default]\nweight = inf\n", "key 'default.weight'"),
        ("[default]\nweight = 1001\n", "key 'default.weight'"),
        ("[default]\nweight = 'heavy'\n", "key 'default.weight'"),
        ("[default]\nconcurrency = 0\n", "key 'default.concurrency'"),
        ("[tenants.acme]\nconcurrency = 2.5\n", "key 'tenants.acme.concurrency'"),
        ("[tenants.acme]\nwieght = 2\n", "key 'tenants.acme.wieght'"),
        ("[tenants.Acme]\nweight = 2\n", "key 'tenants.Acme.[key]'"),
        ("[tenants.'acme corp']\n", "key 'tenants.acme corp.[key]'"),
        ("[tenant.acme]\nweight = 2\n", "key 'tenant'"),
        ("[tenants]\nacme = 3\n", "key 'tenants.acme'"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, content: str, place: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load(tmp_path, content)
    assert (refusal.value.file, refusal.value.place) == (str(tmp_path / "tenants.toml"), place)
    assert refusal.value.reason
    assert refusal.value.cure


def test_the_line_of_a_syntax_error_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tenants\.toml, its TOML: .*line 2") as refusal:
        load(tmp_path, "# one\n[tenants.acme\n")
    assert refusal.value.file == str(tmp_path / "tenants.toml")
