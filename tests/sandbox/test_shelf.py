from __future__ import annotations

from tproxy.sandbox.shelf import Shelf


def test_the_oldest_goes_when_there_are_too_many() -> None:
    shelf: Shelf[str, int] = Shelf(count=2)
    for number, name in enumerate("abc"):
        shelf.put(name, number)
    assert list(shelf) == ["b", "c"]
    assert shelf.get("a") is None


def test_put_again_an_entry_is_the_newest() -> None:
    shelf: Shelf[str, int] = Shelf(count=2)
    for number, name in enumerate("abac"):
        shelf.put(name, number)
    assert list(shelf) == ["a", "c"]
    assert shelf.values() == [2, 3]


def test_the_oldest_go_when_all_weigh_too_much() -> None:
    shelf: Shelf[str, int] = Shelf(count=100, weight=10)
    shelf.put("a", 1, 4)
    shelf.put("b", 2, 4)
    shelf.put("a", 3, 6)
    assert list(shelf) == ["b", "a"]
    shelf.put("c", 4, 5)
    assert list(shelf) == ["c"]
    shelf.put("d", 5, 99)
    assert list(shelf) == ["d"], "the newest stays, whatever it weighs"
    assert shelf.pop("d") == 5
    shelf.put("e", 6, 10)
    shelf.put("f", 7, 0)
    assert list(shelf) == ["e", "f"], "what was taken out weighs nothing"


def test_clear_forgets_weights_too() -> None:
    shelf: Shelf[str, int] = Shelf(count=9, weight=10)
    shelf.put("a", 1, 10)
    shelf.clear()
    shelf.put("b", 1, 10)
    assert list(shelf) == ["b"]
    assert len(shelf) == 1
