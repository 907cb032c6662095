"""The table of protocol faults, both ways."""

import inspect

import pytest

from ioc_wire import errors
from ioc_wire.errors import RemoteFault, WireError, error_of, error_table


def test_table_holds_every_error_of_the_module() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, WireError)}
    assert set(error_table().values()) == kinds - {WireError}


def test_codes_are_unique_positive_and_sorted() -> None:
    table = error_table()
    assert list(table) == sorted(table)
    assert all(0 < code < 128 and kind.code == code for code, kind in table.items())


def test_texts_are_single_lines_of_their_own() -> None:
    texts = [kind.text for kind in error_table().values()]
    assert len(set(texts)) == len(texts)
    assert all(text and "\n" not in text and text[-1] not in ".:" for text in texts)


@pytest.mark.parametrize("code", sorted(error_table()))
def test_code_and_error_are_inverse(code: int) -> None:
    error = error_of(code, "detail")
    assert type(error) is error_table()[code]
    assert error.code == code
    assert str(error) == f"{error.text}: detail"
    assert str(error_of(code, "")) == error.text


@pytest.mark.parametrize("code", [0, 15, 99, 2**63 - 1])
def test_code_from_the_future(code: int) -> None:
    error = error_of(code, "later")
    assert type(error) is RemoteFault
    assert str(code) in str(error)
    assert "later" in str(error)


def test_a_code_cannot_be_taken_twice() -> None:
    with pytest.raises(TypeError, match="taken by Malformed"):
        type("Again", (WireError,), {}, code=1, text="again")
    assert error_table()[1] is errors.Malformed
