"""Every error has one meaning over HTTP, and bodies can always be encoded."""

import json
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from service.errors import HTTP, SHOWN_CHARACTERS, ServiceError, did_you_mean, nearest, problem, shown


def below(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in error.__subclasses__():
        yield child
        yield from below(child)


def test_every_error_has_a_meaning_and_stands_in_the_tree() -> None:
    import service.errors

    assert set(below(ServiceError)) == set(HTTP)
    drawn = service.errors.__doc__ or ""
    assert all(error.__name__ in drawn for error in HTTP)
    assert all(400 <= meaning.status < 600 for meaning in HTTP.values())


@given(st.text(st.characters(), max_size=300) | st.integers() | st.lists(st.text()))
def test_any_value_can_be_shown_in_a_body(value: object) -> None:
    text = shown(value)
    assert text.encode("utf-8").decode() == text
    assert len(text) <= SHOWN_CHARACTERS + 30


def test_long_values_are_cut_and_say_so() -> None:
    assert shown("ab" * 500) == "ab" * 40 + "… (1000 characters)"
    assert shown("\ud800") == "\\ud800"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "(nested too deeply)"


def test_the_body_has_the_members_of_rfc_9457_and_the_ones_other_clients_read() -> None:
    body = problem(422, "Invalid", "no", "id-1", ServiceError.at("/a", "no", value=3, limit=2).fields)
    assert json.loads(json.dumps(body)) == {
        "type": "about:blank",
        "title": "Invalid",
        "status": 422,
        "detail": "no",
        "error": "no",
        "request_id": "id-1",
        "errors": [{"pointer": "/a", "message": "no", "value": "3", "limit": "2"}],
    }


def test_of_a_long_name_only_the_beginning_is_compared() -> None:
    known = "a" * SHOWN_CHARACTERS
    assert did_you_mean(known + "b" * 2_000_000, [known]) == f"; did you mean '{known}'?"


def test_names_nearby_are_suggested() -> None:
    assert did_you_mean("top_kk", ["top_k", "stride"]) == "; did you mean 'top_k'?"
    assert did_you_mean("zzz", ["top_k"]) == ""
    assert nearest("zzz", ["top_k", "stride"]) == "; known: top_k, stride"
    assert nearest("zzz", []) == "; known: none"
