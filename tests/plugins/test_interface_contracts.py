"""The contract of each plugin, the ONNX operator, the creators and the README say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.helpers import built
from tests.plugins.helpers.interface import CONTRACTS, made, needs_compiler
from tokenrt.passes.forms.legalize import PLUGIN
from tokenrt.passes.ops import DOMAIN, OPERATORS, VERSION
from tokenrt.plugins import contracts, library
from tokenrt.plugins.limits import Limits, header

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def path() -> Path:
    return built.host_library()


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_contract_is_the_operators_schema(name: str) -> None:
    contract, operator = CONTRACTS[name], OPERATORS[name]
    assert [tensor.name for tensor in contract.inputs] == list(operator.inputs)
    assert [tensor.name for tensor in contract.outputs] == list(operator.outputs)
    assert {field.name: contracts.KINDS[field.kind] for field in contract.fields} == dict(operator.attributes)
    own = next((tensor.name for tensor in contract.inputs if tensor.type == "own"), None)
    for tensor, kind in zip(contract.outputs, operator.types, strict=True):
        assert tensor.type == ("own" if kind == own else kind)
    function = operator.function(18)
    assert set(function.attribute) == {field.name for field in contract.fields}


def test_the_library_is_the_contracts(path: Path) -> None:
    found = library.described(path)["operators"]
    assert set(found) == set(CONTRACTS)
    for name, contract in CONTRACTS.items():
        assert found[name]["fields"] == [
            (field.name, field.kind, field.least, field.most) for field in contract.fields
        ]
        for side in ("inputs", "outputs"):
            assert found[name][side] == [
                (tensor.name, tensor.shape, tensor.type) for tensor in getattr(contract, side)
            ]


def test_every_readme_is_that_of_its_contract() -> None:
    listed = (contracts.HERE / "README.md").read_text()
    for contract in CONTRACTS.values():
        assert f"| [{contract.operator}]({contract.folder.name}/README.md) |" in listed
        assert (contract.folder / "README.md").read_text() == contract.readme(), (
            f"{contract.operator}: python -m tokenrt.plugins.contracts writes it"
        )
        assert (contract.folder.parent / "kernels" / contract.kernel).is_file()


def test_the_header_of_limits_is_that_of_the_contracts() -> None:
    written = (contracts.HERE / "common" / "limits.h").read_text()
    assert written == contracts.limits_header(), "python -m tokenrt.plugins.contracts writes it"


def test_a_limit_below_that_of_the_other_contracts_has_a_name_of_its_own() -> None:
    found = {name: contract.limits for name, contract in CONTRACTS.items()}
    found["TokenMatch"] = Limits({"B": 1024, "N": 99})
    text = header(found)
    assert "constexpr int kMostTokens = 16384;" in text
    assert "constexpr int kTokenMatchTokens = 99;" in text


def test_nodes_and_plugins_name_each_other(path: Path) -> None:
    assert PLUGIN == {"plugin_version": library.VERSION, "plugin_namespace": library.NAMESPACE}
    assert (library.NAMESPACE, int(library.VERSION)) == (DOMAIN, VERSION)
    for name in CONTRACTS:
        assert made(path, name).texts[:3] == [name, library.VERSION, library.NAMESPACE]


def test_status_words_are_known_and_no_gpu_is_claimed() -> None:
    for contract in CONTRACTS.values():
        assert set(contract.status) == {"kernel", "plugin", "gpu"}
        assert set(contract.status.values()) <= set(contracts.STATUS)
        assert contract.status["gpu"] == "unverified"
