"""Plain addons of mitmproxy's, as a policy names them: asked about whole messages, and never believed.

    exchange ── requestheaders ─► request ─► inspectors ─► origin ─► responseheaders ─► response ─► inspectors ─► client
       each addon in turn, with a copy │ raises, or leaves what is no HTTP ─► as it was before; AddonFailed
                                       └ changed something ─► taken, on record, and admission is asked once more

There is no Master (engine.embedded says why), so there are no options, commands, events of other kinds, and no other
addons to find. They run in the worker, which has no network and no disk. An addon can change what is said to the origin
that was decided, and what the program hears; where that goes is not its to say. What it keeps of a flow and changes
later goes nowhere: that is a copy, and what has been checked is another.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from mitmproxy import ctx, http

from mitmsec.core.mitmproxy_addon import MitmproxyAddon
from mitmsec.engine import bounded_decoding
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.fields import asks_for_h2c, authorities, quicken, without_h2c
from mitmsec.engine.limited import limited
from mitmsec.engine.stepped import within
from mitmsec.engine.watch import Blocked

LIMIT_S = 10.0  # on the clock, for one that waits
HOOKS = ("requestheaders", "request", "responseheaders", "response")
WHOLE = ("request", "response")  # of them: the body is there
OF_REQUEST = ("requestheaders", "request")
SHOWN, THEIRS = "mitmsec.shown", "mitmsec.metadata"
FRAMING = ("content-length", "transfer-encoding")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_TARGET = re.compile(rb"/[\x21-\x7e\x80-\xff]*|\*")  # of no other form: one that names a host would lead there
_STATUSES = range(200, 600)
_BODILESS = (204, 304)
_DATA = ("http_version", "content", "method", "path", "authority", "host", "port", "scheme", "status_code", "reason")


class Unsound(Exception):
    """What an addon made of a message is no HTTP that could be sent; the text says what."""


class Visit:
    """What came of asking all addons about one message."""

    __slots__ = ("changed", "faults", "seen")

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.changed: list[str] = []
        self.faults: list[str] = []
        """Name, hook and the kind of error: never its message, which may quote content."""


class PlainAddons:
    """Those of one worker. `unusable` tells of those that could not be loaded: name, and the kind of error."""

    def __init__(self, addons: Sequence[MitmproxyAddon]) -> None:
        bounded_decoding.bound()
        self.unusable: list[str] = []
        self._hooks: dict[str, list[tuple[str, list[Callable[..., Any]]]]] = {hook: [] for hook in HOOKS}
        for addon in addons:
            try:
                parts = limited(partial(_loaded, addon))
            except BaseException as error:
                self.unusable.append(f"{addon.name}: {type(error).__name__}")
                continue
            for hook in HOOKS:
                methods = [method for part in parts if callable(method := getattr(part, hook, None))]
                if methods:
                    self._hooks[hook].append((addon.name, methods))

    def wants(self, hook: str) -> bool:
        """Some are to be asked."""
        return bool(self._hooks[hook])

    async def ask(self, hook: str, flow: http.HTTPFlow) -> Visit:
        """Each addon that wants it. `flow` is then what they made of it, or what it was before one that failed."""
        visit = Visit()
        for name, methods in self._hooks[hook]:
            visit.seen.append(name)
            try:
                shown = _shown(flow, name)
                for method in methods:
                    answer = limited(partial(method, shown))
                    if inspect.isawaitable(answer):
                        await within(answer, LIMIT_S)
                    elif inspect.isgenerator(answer) or inspect.isasyncgen(answer):
                        raise Unsound("a hook that is a generator never runs")
                changed = limited(partial(_take, flow, shown, hook))
            except BaseException as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise  # it is the flow that is over
                why = f", {error}" if isinstance(error, Unsound) else ""
                visit.faults.append(f"{name}: {hook}: {type(error).__name__}{why}")
                continue
            finally:
                bounded_decoding.forget()
            if changed:
                visit.changed.append(name)
        return visit

    async def visit(self, hook: str, flow: http.HTTPFlow, exchange: Exchange) -> Blocked | None:
        """Ask them about one message of `exchange`; what stops it, be it what they made of it."""
        had_answer, steering = flow.response is not None, _steering(flow.request)
        came = await self.ask(hook, flow)
        request = flow.request
        quicken(request.headers)
        if asks_for_h2c(request.headers.fields):
            without_h2c(request)
        try:
            exchange.visited(came.seen, came.changed, came.faults)
            if came.changed and hook in ("requestheaders", "request"):
                exchange.admit_again(
                    request.data.method,
                    request.data.path,
                    authorities(request),
                    request.headers.fields,
                    is_led=_steering(request) != steering,
                    content=request.data.content or b"",
                    changed_by=came.changed,
                )
                if request.stream:  # its inspectors may have to be asked now, or no longer
                    request.stream = True if exchange.asks(sent=True) else exchange.request_body
            if flow.response is not None and not had_answer:
                exchange.answered(came.changed[-1], len(flow.response.data.content or b""))
            elif came.changed and hook == "response" and flow.response is not None:
                response = flow.response
                exchange.response_again(response.status_code, response.headers.fields, response.data.content or b"")
        except Blocked as blocked:
            return blocked
        return None


def _steering(request: http.Request) -> tuple[str, int, bytes]:
    """What leads mitmproxy to an origin."""
    return request.data.host, request.data.port, request.data.scheme


def _shown(flow: http.HTTPFlow, name: str) -> http.HTTPFlow:
    """What addon `name` is given of `flow` as it is now: each has one of its own, and all of them one `metadata`."""
    known: dict[str, http.HTTPFlow] = flow.metadata.setdefault(SHOWN, {})
    shown = known.get(name)
    if shown is None:
        shown = known[name] = http.HTTPFlow(flow.client_conn, flow.server_conn)
        shown.id, shown.metadata = flow.id, flow.metadata.setdefault(THEIRS, {})
    shown.server_conn = flow.server_conn  # which is known once there is one
    shown.live, shown.error = flow.live, flow.error
    shown.request = flow.request.copy()
    shown.response = flow.response and flow.response.copy()
    return shown


def _take(flow: http.HTTPFlow, shown: http.HTTPFlow, hook: str) -> bool:
    """Make `flow` what an addon has made of `shown`; whether that is another. Raises Unsound, and takes nothing then.

    A request that has gone on stays what it is.
    """
    is_request = hook in OF_REQUEST
    request = shown.request.copy() if is_request else flow.request  # a TypeError, where something is not bytes
    response = shown.response and shown.response.copy()
    if hook not in WHOLE:
        request.data.content = flow.request.data.content
        if response is not None and flow.response is not None:
            response.data.content = flow.response.data.content
        if is_request and flow.request.stream and flow.response is None and response is not None:
            raise Unsound("a request whose body goes by is not to be answered before it has")
    before, had = _state(flow.request), _state(flow.response)
    is_other_request, is_other_response = _state(request) != before, _state(response) != had
    if is_other_request:
        _check(request, before)
    if is_other_response:
        if response is None:
            raise Unsound("an answer that has come cannot be taken back")
        _check(response, had, request.method == "HEAD")
    is_ended = shown.error is not None and shown.error is not flow.error
    _set(flow.request, request if is_other_request else None)
    if is_other_response and flow.response is None:
        flow.response = response
    elif is_other_response:
        _set(flow.response, response)
    if is_ended:
        flow.error = shown.error
    return is_other_request or is_other_response or is_ended


def _state(message: http.Message | None) -> dict[str, Any]:
    if message is None:
        return {}
    data = message.data
    state = {name: getattr(data, name) for name in _DATA if hasattr(data, name)}
    return {**state, "headers": data.headers.fields, "trailers": data.trailers and data.trailers.fields}


def _set(message: http.Message | None, made: http.Message | None) -> None:
    """`message`, which others hold too, becomes what has been made of it, if anything has."""
    if message is not None and made is not None:
        for name in (*_DATA, "headers", "trailers"):
            if hasattr(made.data, name):
                setattr(message.data, name, getattr(made.data, name))


def _check(message: http.Message, before: dict[str, Any], is_head: bool = False) -> None:
    """Raises Unsound for what a peer would read as something else than one message."""
    if before and message.data.http_version != before["http_version"]:
        raise Unsound("the version of HTTP is not to be changed")
    if isinstance(message, http.Request):
        method, had = message.data.method, before["method"].upper()
        if not _NAME.fullmatch(method) or not _TARGET.fullmatch(message.data.path) or method.upper() == b"CONNECT":
            raise Unsound("a method or path that cannot be sent")
        if (method.upper() == b"HEAD") != (had == b"HEAD"):
            raise Unsound(
                "a HEAD made of another method, or another of it: whether a body follows is not to be changed"
            )
    elif not isinstance(message, http.Response) or message.status_code not in _STATUSES:
        raise Unsound("no answer that can be sent")
    elif not all(char >= 0x20 for char in message.data.reason):
        raise Unsound("a reason that cannot be sent")
    for name, value in (*message.headers.fields, *(message.trailers.fields if message.trailers else ())):
        if not _NAME.fullmatch(name) or any(char in value for char in b"\r\n\0"):
            raise Unsound("a field that cannot be sent")
    _frame(message, before, is_head=is_head)


def _frame(message: http.Message, before: dict[str, Any], *, is_head: bool) -> None:
    """One body, as long as its head says."""
    if not before and message.data.content is None:
        message.data.content = b""
    content = message.data.content
    is_bodiless = isinstance(message, http.Response) and message.status_code in _BODILESS
    if is_head:
        message.data.content = None if content is None else b""
    elif content is None and before["content"] is not None:  # the head would announce what never comes
        raise Unsound("a body that is not there")
    elif content is None:  # it goes by
        was_bodiless = before.get("status_code") in _BODILESS
        if was_bodiless != is_bodiless or _framing(message.headers.fields) != _framing(before["headers"]):
            raise Unsound("the length of a body that goes by is not to be changed")
    elif is_bodiless and content:
        raise Unsound("a body where there can be none")
    else:
        message.headers.pop("transfer-encoding", None)
        is_told = isinstance(message, http.Response) or bool(content) or "content-length" in message.headers
        if is_told and not is_bodiless:
            message.headers["content-length"] = str(len(content))


def _framing(fields: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return sorted((name.lower(), value) for name, value in fields if name.lower().decode("latin-1") in FRAMING)


def _loaded(addon: MitmproxyAddon) -> list[object]:
    """The module, which may have hooks itself, and what it calls its `addons`."""
    module = ModuleType(f"mitmsec_plain_addon_{addon.sha256}")
    module.__file__ = addon.name
    sys.modules[module.__name__] = module  # where classes look for what they are of
    if not hasattr(ctx, "log"):
        vars(ctx)["log"] = _Silence()
    exec(compile(addon.text, addon.name, "exec"), vars(module))  # noqa: S102 -- the policy says so
    return [module, *_flat(getattr(module, "addons", ()))]


def _flat(addons: Any) -> Iterator[object]:
    for one in addons:
        yield one
        yield from _flat(getattr(one, "addons", ()))


class _Silence:
    """`ctx.log`: there is nowhere to write to."""

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda *_, **__: None
