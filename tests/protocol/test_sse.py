from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuts import every_cut
from tproxy.protocol.sse import MAX_DATA_LINES, Event, SSEOverflow, SSEParser


def read(pieces: Iterable[bytes], **bounds: int) -> list[Event]:
    """The events of a stream: those before an overflow if there is one."""
    parser = SSEParser(**bounds)
    events: list[Event] = []
    try:
        for piece in pieces:
            events += parser.feed(piece)
    except SSEOverflow as overflow:
        events += overflow.events
    return events


def message(data: bytes, event: str = "message", id: str = "", retry: int | None = None) -> Event:
    return Event(event, data, id, retry)


DELTA = b'event: content_block_delta\ndata: {"delta":{"text":"h\xc3\xa9"}}\n\n'
ROWS: dict[str, tuple[bytes, list[Event]]] = {
    "nothing": (b"", []),
    "as Anthropic sends it": (DELTA, [message(b'{"delta":{"text":"h\xc3\xa9"}}', "content_block_delta")]),
    "two": (DELTA * 2, [message(b'{"delta":{"text":"h\xc3\xa9"}}', "content_block_delta")] * 2),
    "CRLF": (b"event: a\r\ndata: 1\r\n\r\ndata: 2\r\n\r\n", [message(b"1", "a"), message(b"2")]),
    "CR": (b"event: a\rdata: 1\r\rdata: 2\r\r", [message(b"1", "a"), message(b"2")]),
    "line ends mixed": (
        b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\n\rdata: 4\n\r",
        [message(b"%d" % i) for i in (1, 2, 3, 4)],
    ),
    "LF CR are two ends": (b"data: 1\n\rdata: 2\n\n", [message(b"1"), message(b"2")]),
    "CR CR LF are two ends": (b"data: 1\r\r\ndata: 2\n\n", [message(b"1"), message(b"2")]),
    "BOM": (b"\xef\xbb\xbfdata: 1\n\n", [message(b"1")]),
    "BOM before a blank line": (b"\xef\xbb\xbf\ndata: 1\n\n", [message(b"1")]),
    "one BOM only": (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", [message(b"2")]),
    "BOM later": (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [message(b"1")]),
    "half a BOM": (b"\xef\xbbdata: 1\n\ndata: 2\n\n", [message(b"2")]),
    "comments": (b": ping\n\n:\ndata: 1\n: x\n\n", [message(b"1")]),
    "several lines": (b"data: 1\ndata: 2\ndata: 3\n\n", [message(b"1\n2\n3")]),
    "an empty line among several": (b"data: 1\ndata:\ndata: 3\n\n", [message(b"1\n\n3")]),
    "no colon": (b"data\n\n", [message(b"")]),
    "no colon, twice": (b"data\ndata\n\n", [message(b"\n")]),
    "empty value": (b"data:\n\n", [message(b"")]),
    "one space only": (b"data:  1\n\ndata:2\n\ndata: 3 \n\n", [message(b" 1"), message(b"2"), message(b"3 ")]),
    "a tab is no space": (b"data:\t1\n\n", [message(b"\t1")]),
    "colon in the value": (b"data: a: b\n\n", [message(b"a: b")]),
    "name is exact": (b"Data: 1\ndata : 2\n data: 3\ndata: 4\n\n", [message(b"4")]),
    "unknown field": (b"foo: 1\nbar\ndata: 2\n\n", [message(b"2")]),
    "as the Messages API sends them": (
        b'event: ping\ndata: {"type": "ping"}\n\nevent: message_stop\ndata: {}\n\n',
        [message(b'{"type": "ping"}', "ping"), message(b"{}", "message_stop")],
    ),
    "a known name, and more lines": (
        b"event: ping\ndata: 1\ndata: 2\n\nevent: ping\nid: 7\ndata: 3\n\n"
        b"event: ping\ndata:  4\n\nevent: ping\ndata: \n\n",
        [
            message(b"1\n2", "ping"),
            message(b"3", "ping", id="7"),
            message(b" 4", "ping", id="7"),
            message(b"", "ping", id="7"),
        ],
    ),
    "a known name after another": (
        b"data: 0\nevent: ping\ndata: 1\n\nevent: ping\n\nevent: ping\ndata: 2\n\n",
        [message(b"0\n1", "ping"), message(b"2", "ping")],
    ),
    "no data, no event": (b"event: a\n\ndata: 1\n\n", [message(b"1")]),
    "last event name counts": (b"event: a\nevent: b\ndata: 1\n\n", [message(b"1", "b")]),
    "empty event name": (b"event: a\nevent\ndata: 1\n\n", [message(b"1")]),
    "event name that is no UTF-8": (b"event: \xff\ndata: 1\n\n", [message(b"1", "\ufffd")]),
    "data that is no UTF-8": (b"data: \xff\xc3\n\n", [message(b"\xff\xc3")]),
    "id stays": (b"id: 1\ndata: 1\n\ndata: 2\n\n", [message(b"1", id="1"), message(b"2", id="1")]),
    "id without data": (b"id: 1\n\ndata: 2\n\n", [message(b"2", id="1")]),
    "id taken back": (b"id: 1\ndata: 1\n\nid\ndata: 2\n\n", [message(b"1", id="1"), message(b"2")]),
    "id with NUL": (b"id: 1\nid: 2\0\ndata: 1\n\n", [message(b"1", id="1")]),
    "retry": (b"retry: 15\ndata: 1\n\n", [message(b"1", retry=15)]),
    "retry stays": (b"retry: 0\n\ndata: 1\n\n", [message(b"1", retry=0)]),
    "retry of digits only": (
        b"retry: 1\nretry: +2\nretry: 3.0\nretry:\nretry:  4\nretry: \xd9\xa3\ndata: 1\n\n",
        [message(b"1", retry=1)],
    ),
    "retry too long to mean anything": (b"retry: " + b"9" * 5000 + b"\ndata: 1\n\n", [message(b"1")]),
    "unfinished line": (b"data: 1\n\ndata: 2", [message(b"1")]),
    "unfinished event": (b"data: 1\n\ndata: 2\n", [message(b"1")]),
    "unfinished CRLF event": (b"data: 1\r\n\r\ndata: 2\r\n", [message(b"1")]),
    "blank lines": (b"\n\n\r\n\r\r\ndata: 1\n\n\n\n", [message(b"1")]),
    "many blank lines": (b"data: 1\n\n\n\n\n\ndata: 2\n\n\n\n", [message(b"1"), message(b"2")]),
    "many blank lines, mixed": (
        b"\n\n\n\ndata: 1\r\n\n\n\n\n\r\rdata: 2\r\r\r\n\n\n\ndata: 3\n\r\n",
        [message(b"1"), message(b"2"), message(b"3")],
    ),
    "other line ends are data": (
        b"data: a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f\n\n",
        [message("a\vb\fc\x1cd\x85e\u2028f".encode())],
    ),
}


@pytest.mark.parametrize(("stream", "expected"), ROWS.values(), ids=ROWS)
def test_events(stream: bytes, expected: list[Event]) -> None:
    for pieces in every_cut(stream):
        assert read(pieces) == expected, pieces


def test_an_event_comes_with_the_byte_that_ends_it() -> None:
    for ends in (b"\n\n", b"\r\n\r", b"\r\r"):  # the LF after the last CR may come later, and says nothing
        parser = SSEParser()
        assert parser.feed(b"data: 1" + ends[:-1]) == []
        assert parser.feed(ends[-1:]) == [message(b"1")]
    assert parser.feed(b"") == []
    assert parser.feed(b"\ndata: 2\n\n") == [message(b"2")]


def reference(stream: bytes) -> list[Event]:
    """The algorithm of the standard, written down once more, for whole streams."""
    events = []
    event, data, last_id, retry = b"", b"", b"", None
    for line in re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]:
        if not line:
            if data:
                events.append(Event((event or b"message").decode(), data[:-1], last_id.decode(), retry))
            event, data = b"", b""
            continue
        match = re.fullmatch(rb"([^:]*)(?:: ?(.*))?", line, re.DOTALL)
        assert match
        field, value = match[1], match[2] or b""
        if field == b"event":
            event = value
        elif field == b"data":
            data += value + b"\n"
        elif field == b"id" and b"\0" not in value:
            last_id = value
        elif field == b"retry" and re.fullmatch(rb"[0-9]+", value):
            retry = int(value)
    return events


PARTS = [
    b"data",
    b"event",
    b"id",
    b"retry",
    b":",
    b" ",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"1",
    b"x",
    b"\0",
    b"\xef\xbb\xbf",
    b"event: ping",
    b"\ndata: ",
    b"event: error\ndata: 1\n\n",
]


@given(st.lists(st.sampled_from(PARTS)).map(b"".join), st.lists(st.integers(0, 60)))
def test_any_stream_at_any_cuts(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert read(pieces) == reference(stream)


OVERFLOWS: dict[str, tuple[bytes, list[Event]]] = {
    "line": (b"data: 1\n\ndata: 345678901\ndata: 2\n\n", [message(b"1")]),
    "unfinished line": (b"data: 1\n\ndata: 345678901", [message(b"1")]),
    "comment": (b"data: 1\n\n: 34567890123456\n\n", [message(b"1")]),
    "line of the longest": (b"data: 34567890\n\ndata: 1\n\n", [message(b"34567890"), message(b"1")]),
    "first line with a BOM": (b"\xef\xbb\xbfdata: 34567890\n\n", [message(b"34567890")]),
    "first line too long": (b"data: 345678901\n\ndata: 1\n\n", []),
    "first line too long, with a BOM": (b"\xef\xbb\xbfdata: 345678901\n\n", []),
    "event": (b"data: 1\n\n" + b"data: 1234567\n" * 3 + b"\ndata: 2\n\n", [message(b"1")]),
    "event of the largest": (b"data: 1234567\ndata: 1234567\ndata: 123\n\n", [message(b"1234567\n1234567\n123")]),
    "event one too large": (b"data: 1234567\ndata: 1234567\ndata: 1234\n\n", []),
    "empty lines": (b"data\n" * 21 + b"\ndata: 2\n\n", []),
}


@pytest.mark.parametrize(("stream", "expected"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_bounds(stream: bytes, expected: list[Event]) -> None:
    for pieces in every_cut(stream):
        assert read(pieces, max_line=14, max_event=19) == expected, pieces


@pytest.mark.parametrize("stream", [b"data: 12345678901\n", b"data: 12345678901234", b"data: 1\n" * 12])
def test_past_a_bound_the_parser_stays_unusable(stream: bytes) -> None:
    for pieces in every_cut(stream):
        parser = SSEParser(max_line=16, max_event=20)

        def feed(*pieces: bytes, parser: SSEParser = parser) -> None:
            for piece in pieces:
                parser.feed(piece)

        with pytest.raises(SSEOverflow, match=r"more than (16|20) bytes"):
            feed(*pieces)
        for later in (b"", b"\n\n", b"data: 1\n\n"):
            with pytest.raises(SSEOverflow) as caught:
                feed(later)
            assert caught.value.events == ()


def test_bounds_of_an_event_with_a_known_name() -> None:
    stream = b"event: message_start\ndata: 1\n\nevent: message_start\ndata: "
    for line, event in [(26, 100), (100, 20)]:
        for size, expected in [(20, 2), (21, 1)]:
            for pieces in every_cut(stream + b"x" * size + b"\n\n"):
                assert len(read(pieces, max_line=line, max_event=event)) == expected
    assert read([stream], max_line=19) == []


def test_the_default_bounds() -> None:
    parser = SSEParser()
    line = b"data: " + b"x" * ((1 << 20) - 6)
    assert len(parser.feed(line + b"\n\n")[0].data) == (1 << 20) - 6
    with pytest.raises(SSEOverflow):
        parser.feed(line + b"x\n\n")
    with pytest.raises(SSEOverflow):
        SSEParser().feed((line + b"\n") * 5)


def test_the_lines_of_an_event_are_bounded() -> None:
    for piece in (7, 100_000):
        lines = b"data\n" * MAX_DATA_LINES
        for stream, expected in [(lines + b"\ndata: 1\n\n", 2), (b"data: 1\n\n" + lines + b"data\n\n", 1)]:
            assert len(read([stream[i : i + piece] for i in range(0, len(stream), piece)])) == expected


def test_a_long_line_byte_by_byte() -> None:
    parser = SSEParser()
    for byte in b"data: " + b"x" * 200_000 + b"\n":
        assert parser.feed(bytes([byte])) == []
    assert parser.feed(b"\n") == [message(b"x" * 200_000)]


def test_json_in_events() -> None:
    text = "äöü 語 🙂"
    stream = "".join(f"data: {json.dumps({'text': text}, ensure_ascii=False)}\n\n" for _ in range(3)).encode()
    for pieces in every_cut(stream):
        assert [json.loads(event.data)["text"] for event in read(pieces)] == [text] * 3
